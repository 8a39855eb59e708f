//! Writes each target's seeds into a folder of its name: `seeds FOLDER`.

use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let usage = || io::Error::other("seeds FOLDER");
    let root = PathBuf::from(std::env::args_os().nth(1).ok_or_else(usage)?);
    for target in shoal_fuzz::TARGETS {
        let folder = root.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
