//! Which object a word on the command line means: full id, else name, else unique id prefix.

use shoal_api::{Network, Node, Service, Task};

/// What can be named on the command line.
pub trait Named {
    /// The word for one of these.
    const KIND: &'static str;
    /// Its id.
    fn id(&self) -> &str;
    /// Its name.
    fn name(&self) -> String;
}

/// Why a word means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No object has it.
    #[error("no such {kind}: {word}")]
    Unknown {
        /// `service`, `node`, …
        kind: &'static str,
        /// As typed.
        word: String,
    },
    /// Several have it.
    #[error("{kind} {word} is ambiguous ({matches} matches found)")]
    Ambiguous {
        /// `service`, `node`, …
        kind: &'static str,
        /// As typed.
        word: String,
        /// How many.
        matches: usize,
    },
}

macro_rules! named {
    ($($type:ty, $kind:literal, $name:expr;)*) => {
        $(impl Named for $type {
            const KIND: &'static str = $kind;

            fn id(&self) -> &str {
                &self.id
            }

            fn name(&self) -> String {
                let name: fn(&Self) -> String = $name;
                name(self)
            }
        })*
    };
}

named! {
    Service, "service", |service| service.name().to_owned();
    Node, "node", |node| node.hostname().to_owned();
    Task, "task", Task::name;
    Network, "network", |network| {
        network.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default()
    };
}

/// Finds the object that `word` means.
///
/// # Errors
/// None has it, or several have it.
pub fn resolve<'a, T: Named>(word: &str, all: &'a [T]) -> Result<&'a T, ResolveError> {
    let kind = T::KIND;
    let by_id = |object: &&T| object.id() == word;
    let by_name = |object: &&T| object.name() == word;
    let by_prefix = |object: &&T| !word.is_empty() && object.id().starts_with(word);
    let filters: [&dyn Fn(&&T) -> bool; 3] = [&by_id, &by_name, &by_prefix];
    for filter in filters {
        let matches: Vec<&T> = all.iter().filter(filter).collect();
        match matches[..] {
            [] => {}
            [object] => return Ok(object),
            _ => {
                let matches = matches.len();
                return Err(ResolveError::Ambiguous { kind, word: word.to_owned(), matches });
            }
        }
    }
    Err(ResolveError::Unknown { kind, word: word.to_owned() })
}

#[cfg(test)]
mod tests {
    use shoal_api::ServiceSpec;

    use super::*;

    fn check(word: &str, expected: Result<&str, &str>) {
        let service = |id: &str, name: &str| Service {
            id: id.to_owned(),
            spec: Some(ServiceSpec { name: name.to_owned(), ..ServiceSpec::default() }),
            ..Service::default()
        };
        let all = [service("abc", "web"), service("abd", "abc"), service("xyz", "ab")];
        let got = resolve(word, &all).map(|service| service.id.as_str());
        assert_eq!(got.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn a_full_id_beats_a_name_and_that_beats_a_prefix() {
        check("abc", Ok("abc"));
        check("web", Ok("abc"));
        check("ab", Ok("xyz"));
        check("x", Ok("xyz"));
    }

    #[test]
    fn a_prefix_of_several_is_ambiguous() {
        check("a", Err("service a is ambiguous (2 matches found)"));
    }

    #[test]
    fn a_word_that_nothing_has_is_unknown() {
        check("nope", Err("no such service: nope"));
        check("", Err("no such service: "));
    }
}
