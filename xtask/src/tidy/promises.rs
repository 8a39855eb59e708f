//! Every numbered line of SPECIFICATION.md names tests that exist.
//!
//! Its form is `12. What is promised. — test: path/to/file.rs::name_of_the_test`, several tests
//! with commas between them. A promise may span lines; the tests stand at its end.

use super::File;

const SPECIFICATION: &str = "SPECIFICATION.md";
const MARK: &str = "— test:";

/// Problems of the specification; without one there are none.
pub(super) fn check(files: &[File]) -> Vec<String> {
    let Some(specification) = files.iter().find(|file| file.path == SPECIFICATION) else {
        return Vec::new();
    };
    promises(&specification.text)
        .into_iter()
        .flat_map(|(number, text)| problems_of(number, &text, files))
        .collect()
}

/// Numbered promises, each as one line.
fn promises(text: &str) -> Vec<(usize, String)> {
    let mut promises: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let numbered = line.split_once(". ").and_then(|(number, rest)| {
            number.parse::<usize>().ok().map(|number| (number, rest.to_owned()))
        });
        if let Some(promise) = numbered {
            promises.push(promise);
            open = true;
        } else if line.trim().is_empty() || line.starts_with('#') {
            open = false;
        } else if open && let Some((_, promise)) = promises.last_mut() {
            promise.push(' ');
            promise.push_str(line.trim());
        }
    }
    promises
}

fn problems_of(number: usize, text: &str, files: &[File]) -> Vec<String> {
    let Some((_, tests)) = text.split_once(MARK) else {
        return vec![format!(
            "{SPECIFICATION}: promise {number} names no test (`{MARK} path::name`)"
        )];
    };
    tests
        .split(',')
        .map(|test| test.trim().trim_matches('`').trim_end_matches('.').trim_matches('`'))
        .filter(|test| !exists(test, files))
        .map(|test| format!("{SPECIFICATION}: promise {number}: no test {test}"))
        .collect()
}

fn exists(test: &str, files: &[File]) -> bool {
    let Some((path, name)) = test.rsplit_once("::") else { return false };
    files
        .iter()
        .find(|file| file.path == path)
        .is_some_and(|file| file.text.contains(&format!("fn {name}(")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(specification: &str) -> Vec<String> {
        check(&[
            File { path: SPECIFICATION.into(), text: specification.into() },
            File { path: "a.rs".into(), text: "#[test]\nfn water_is_wet() {}\n".into() },
        ])
    }

    #[test]
    fn a_promise_without_a_test_is_a_problem() {
        assert_eq!(with("1. Water is wet.\n").len(), 1);
        assert_eq!(with("1. Water is wet. — test: a.rs::water_is_dry\n").len(), 1);
        assert_eq!(with("1. Water is wet. — test: b.rs::water_is_wet\n").len(), 1);
        assert_eq!(with("1. Wet. — test: `a.rs::water_is_wet`, a.rs::no\n").len(), 1);
    }

    #[test]
    fn a_promise_may_span_lines_and_other_lines_are_free() {
        let text =
            "# Title\n\nWords.\n\n1. Water is\n   wet. — test: `a.rs::water_is_wet`\n\nMore.\n";
        assert!(with(text).is_empty(), "{:?}", with(text));
    }

    #[test]
    fn no_specification_is_no_problem() {
        assert!(check(&[]).is_empty());
    }
}
