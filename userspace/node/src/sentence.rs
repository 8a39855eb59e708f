//! One sentence for an error and its causes.
//!
//! Libraries differ in whether an error's text holds its cause's; told once it is enough.

/// The error, then each cause that the text before it does not hold already.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        told if told.contains(&cause) => text,
        told => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read /x: {source}")]
    struct Holds {
        source: std::io::Error,
    }

    #[test]
    fn a_cause_is_told_once() {
        let gone = || std::io::Error::other("it is gone");
        let error = anyhow::Error::from(Holds { source: gone() }).context("the agent failed");
        assert_eq!(sentence(&error), "the agent failed: cannot read /x: it is gone");
        let error = anyhow::Error::from(gone()).context("the agent failed");
        assert_eq!(sentence(&error), "the agent failed: it is gone");
    }
}
