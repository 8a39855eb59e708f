//! `--filter KEY=VALUE`: which objects of a list are shown.
//!
//! Several values of one key mean any of them, several keys all of them; labels must all be there.

use std::collections::BTreeMap;

/// One `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    key: String,
    value: String,
}

impl Filter {
    /// Reads it; for clap.
    ///
    /// # Errors
    /// There is no `=`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or("bad format of filter (expected name=value)")?;
        Ok(Self { key: key.trim().to_lowercase(), value: value.trim().to_owned() })
    }
}

/// What was given for a list.
#[derive(Clone, Copy, Debug)]
pub struct Filters<'a>(&'a [Filter]);

impl<'a> Filters<'a> {
    /// Checks that the list knows the keys.
    ///
    /// # Errors
    /// The first that it does not know, in Docker's words.
    pub fn new(filters: &'a [Filter], keys: &[&str]) -> anyhow::Result<Self> {
        match filters.iter().find(|filter| !keys.contains(&filter.key.as_str())) {
            Some(Filter { key, .. }) => anyhow::bail!("Invalid filter '{key}'"),
            None => Ok(Self(filters)),
        }
    }

    /// The values given for a key.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |filter| filter.key == key).map(|filter| filter.value.as_str())
    }

    /// Whether a key was given at all.
    pub fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// Whether one of a key's values fits; true where the key was not given.
    pub fn any(&self, key: &str, mut fits: impl FnMut(&str) -> bool) -> bool {
        !self.has(key) || self.values(key).any(&mut fits)
    }

    /// Whether an object has all labels of a key, `NAME` or `NAME=VALUE`.
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|label| label == value),
            None => labels.contains_key(wanted),
        })
    }

    /// Checks a key's values against the words that there are.
    ///
    /// # Errors
    /// The first that is none, in Docker's words.
    pub fn words(&self, key: &str, words: &[&str]) -> anyhow::Result<()> {
        match self.values(key).find(|value| !words.contains(value)) {
            Some(value) => anyhow::bail!("Invalid {key} filter: '{value}'"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        texts.iter().map(|text| Filter::parse(text).unwrap()).collect()
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_labels_are_not() {
        let given = filters(&["name=a", "NAME=b", "label=zone=x", "label=ssd"]);
        let given = Filters::new(&given, &["name", "label"]).unwrap();
        assert!(given.any("name", |name| name == "b"));
        assert!(!given.any("name", |name| name == "c"));
        assert!(given.any("id", |_| false), "nobody asked for ids");
        let check = |labels: &[(&str, &str)], expected| {
            let labels = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
            assert_eq!(given.labels("label", &labels), expected, "{labels:?}");
        };
        check(&[("zone", "x"), ("ssd", "")], true);
        check(&[("zone", "y"), ("ssd", "")], false);
        check(&[("zone", "x")], false);
    }

    #[test]
    fn what_a_list_does_not_know_is_refused_in_dockers_words() {
        let text = "bad format of filter (expected name=value)";
        assert_eq!(Filter::parse("role").unwrap_err(), text);
        let given = filters(&["bad=1"]);
        let error = Filters::new(&given, &["name"]).unwrap_err().to_string();
        assert_eq!(error, "Invalid filter 'bad'");
        let given = filters(&["role=king"]);
        let given = Filters::new(&given, &["role"]).unwrap();
        let error = given.words("role", &["worker", "manager"]).unwrap_err().to_string();
        assert_eq!(error, "Invalid role filter: 'king'");
    }
}
