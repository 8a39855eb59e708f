//! `--format TEMPLATE`: the part of Go's templates that people use with `docker`.
//!
//! `{{.Name}}`, `{{.Spec.Role}}`, `{{json .Spec}}`, `{{.}}` and text around them, with `\t` and
//! `\n` in it. No conditions, loops or functions: for those there is JSON and `jq`.

use serde_json::Value;

/// A text with fields in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field {
        /// Empty for the whole.
        path: Vec<String>,
        json: bool,
    },
}

/// What Go prints for a field that is not there.
const NO_VALUE: &str = "<no value>";

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Something between braces that is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            parts.push(Part::Text(unescaped(before)));
            let (inside, after) = after
                .split_once("}}")
                .ok_or_else(|| format!("template parsing error: no }}}} in {text:?}"))?;
            parts.push(field(inside.trim())?);
            rest = after;
        }
        parts.push(Part::Text(unescaped(rest)));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self { parts })
    }

    /// Names of the fields, in order; the last one of each path.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field { path, .. } => path.last().map(String::as_str),
            Part::Text(_) => None,
        })
    }

    /// Fills it with an object's fields.
    pub fn render(&self, object: &Value) -> String {
        self.parts.iter().fold(String::new(), |text, part| {
            text + &match part {
                Part::Text(part) => part.clone(),
                Part::Field { path, json } => {
                    let at = |value: &Value, name: &String| value.get(name).cloned();
                    let value =
                        path.iter().try_fold(object.clone(), |value, name| at(&value, name));
                    match value {
                        None => NO_VALUE.to_owned(),
                        Some(Value::String(text)) if !json => text,
                        Some(value) => value.to_string(),
                    }
                }
            }
        })
    }
}

fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn field(inside: &str) -> Result<Part, String> {
    let unknown = || {
        format!(
            "template parsing error: {{{{{inside}}}}} is not understood: use {{{{.Field}}}}, \
             {{{{.Field.Field}}}} or {{{{json .Field}}}}"
        )
    };
    let (json, path) = match inside.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, inside),
    };
    let path = path.strip_prefix('.').ok_or_else(unknown)?;
    if path.is_empty() {
        return Ok(Part::Field { path: Vec::new(), json });
    }
    let name = |name: &str| {
        let good = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        good.then(|| name.to_owned())
    };
    let path = path.split('.').map(name).collect::<Option<_>>().ok_or_else(unknown)?;
    Ok(Part::Field { path, json })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_put_where_they_are_named() {
        let object = json!({
            "ID": "n",
            "Self": true,
            "Spec": { "Role": "manager", "Labels": { "zone": "a" } },
        });
        let check = |template: &str, expected: &str| {
            assert_eq!(Template::parse(template).unwrap().render(&object), expected, "{template}");
        };
        check("{{.ID}}", "n");
        check("{{ .ID }}: {{.Spec.Role}}, {{.Self}}!", "n: manager, true!");
        check("{{json .ID}}\\t{{json .Spec.Labels}}", "\"n\"\t{\"zone\":\"a\"}");
        check("{{.Spec.Labels.zone}}", "a");
        check("{{.Nope}} {{.ID.Nope}}", "<no value> <no value>");
        check("no fields", "no fields");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = |template: &str| Template::parse(template).unwrap_err();
        assert_eq!(refused("{{.ID"), "template parsing error: no }} in \"{{.ID\"");
        assert_eq!(
            refused("{{range .Tasks}}"),
            "template parsing error: {{range .Tasks}} is not understood: use {{.Field}}, \
             {{.Field.Field}} or {{json .Field}}"
        );
        assert!(refused("{{ID}}").contains("is not understood"));
        assert!(refused("{{.A..B}}").contains("is not understood"));
    }
}
