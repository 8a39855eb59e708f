//! Files in PEM form that a flag names. They are read where the command runs, not by the daemon.

use std::path::Path;

/// Checks that a file holds PEM and gives its text.
///
/// # Errors
/// It cannot be read or holds something else.
pub fn read(path: &str) -> Result<String, String> {
    // Far more than any chain of certificates; a device or a video is not read to its end.
    const BYTES_MAX: u64 = 1 << 20;
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > BYTES_MAX {
        return Err(format!("{} is too large for a PEM file", Path::new(path).display()));
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(text).map_err(|_| not_pem())?;
    let begin = text.lines().any(|line| line.starts_with("-----BEGIN ") && line.ends_with("-----"));
    let end = text.lines().any(|line| line.starts_with("-----END ") && line.ends_with("-----"));
    if begin && end { Ok(text) } else { Err(not_pem()) }
}

fn not_pem() -> String {
    "file contents must be in PEM format".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_must_be_there_and_hold_pem() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.pem");
        let path = path.to_str().unwrap();
        assert_eq!(read(path).unwrap_err(), "No such file or directory (os error 2)");
        std::fs::write(path, "hello").unwrap();
        assert_eq!(read(path).unwrap_err(), "file contents must be in PEM format");
        std::fs::write(path, [0xff; 8]).unwrap();
        assert_eq!(read(path).unwrap_err(), "file contents must be in PEM format");
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        std::fs::write(path, pem).unwrap();
        assert_eq!(read(path).unwrap(), pem);
    }
}
