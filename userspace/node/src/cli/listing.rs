//! Lists of objects as people and programs read them.
//!
//! Columns follow Go's tabwriter as Docker configures it (at least 10 wide, 3 of padding, the last
//! column is not padded), so that whoever cuts columns out of `docker` can cut them out of `shoal`.
//! `--format json` prints one object per line with Docker's keys, sorted; `--format TEMPLATE` a line
//! per object with the fields of a Go template, after `table` with a header and aligned.

use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value};

use crate::cli::template::Template;

/// Least width of a column that is not the last.
const WIDTH_MIN: usize = 10;
/// Spaces after the widest cell.
const PADDING: usize = 3;

/// How a list is printed.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// How to print the list: table, json, a template such as '{{.ID}}', or 'table TEMPLATE'.
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub format: Format,
    /// Print ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

/// What a list, or one object, looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Columns with a header.
    Table,
    /// One JSON object per line.
    Json,
    /// A line per object.
    Template(Template),
    /// Chosen columns with a header, from a template with tabs.
    Columns(Template),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            text => match text.strip_prefix("table ") {
                Some(template) => Template::parse(template.trim()).map(Self::Columns),
                None if text.contains("{{") => Template::parse(text).map(Self::Template),
                None => Err("use table, json or a template such as '{{.ID}}'".to_owned()),
            },
        }
    }
}

/// A list with its columns.
pub struct Listing {
    /// Header and JSON key of each column.
    columns: &'static [(&'static str, &'static str)],
    rows: Vec<Row>,
}

struct Row {
    /// What `--quiet` prints.
    id: String,
    cells: Vec<String>,
    /// JSON keys that have no column, or another value than their column.
    extra: Vec<(&'static str, Value)>,
}

impl Listing {
    /// An empty list.
    pub fn new(columns: &'static [(&'static str, &'static str)]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds an object; `extra` is shown in JSON only.
    pub fn push(&mut self, id: &str, cells: Vec<String>, extra: Vec<(&'static str, Value)>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(Row { id: id.to_owned(), cells, extra });
    }

    /// The text to print, with its last newline.
    pub fn render(&self, output: &Output) -> String {
        let rows = self.rows.iter();
        match (output.quiet, &output.format) {
            (true, _) => rows.map(|row| format!("{}\n", row.id)).collect(),
            (false, Format::Json) => rows.map(|row| format!("{}\n", self.json(row))).collect(),
            (false, Format::Template(template)) => {
                rows.map(|row| format!("{}\n", template.render(&self.json(row)))).collect()
            }
            (false, Format::Columns(template)) => {
                let cells = |text: &str| text.split('\t').map(str::to_owned).collect();
                let header = template.render(&self.header(template));
                let rows = rows.map(|row| cells(&template.render(&self.json(row))));
                table(&std::iter::once(cells(&header)).chain(rows).collect::<Vec<_>>())
            }
            (false, Format::Table) => {
                let header = self.columns.iter().map(|&(header, _)| header.to_owned()).collect();
                let rows = rows.map(|row| row.cells.clone());
                table(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
            }
        }
    }

    /// The headers of a template's fields; one that is no column is its own name.
    fn header(&self, template: &Template) -> Value {
        let header = |field: &str| {
            let column = self.columns.iter().find(|(_, key)| *key == field);
            column.map_or_else(|| field.to_uppercase(), |(header, _)| (*header).to_owned())
        };
        let headers = template.fields().map(|field| (field.to_owned(), header(field).into()));
        Value::Object(headers.collect())
    }

    fn json(&self, row: &Row) -> Value {
        let cells = self.columns.iter().zip(&row.cells);
        let mut object: Map<String, Value> = cells
            .map(|(&(_, key), cell)| {
                (key.to_owned(), Value::from(cell.trim_start_matches(" \\_ ")))
            })
            .collect();
        object.extend(row.extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        Value::Object(object)
    }
}

/// Aligns cells; every row has as many as the first.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        WIDTH_MIN.max(widest + PADDING)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < columns {
                let used = cell.chars().count();
                text.extend(std::iter::repeat_n(' ', widths[column] - used));
            }
        }
        text.push('\n');
    }
    text
}

/// Ids are shown by their first 12 characters, as Docker does.
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[(&str, &str)] = &[("ID", "ID"), ("NAME", "Name"), ("PORTS", "Ports")];

    fn listing() -> Listing {
        let mut listing = Listing::new(COLUMNS);
        let cells = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        listing.push("abcdefghijklmnop", cells(["abcdefghijkl", "wéb", "*:8080->80/tcp"]), vec![]);
        listing.push(
            "b",
            cells(["b", " \\_ a-name-that-is-long", ""]),
            vec![("Self", true.into())],
        );
        listing
    }

    fn check(format: Format, quiet: bool, expected: &str) {
        assert_eq!(listing().render(&Output { format, quiet }), expected);
    }

    #[test]
    fn columns_are_as_wide_as_go_makes_them() {
        check(
            Format::Table,
            false,
            "ID             NAME                      PORTS\n\
             abcdefghijkl   wéb                       *:8080->80/tcp\n\
             b               \\_ a-name-that-is-long   \n",
        );
    }

    #[test]
    fn a_narrow_column_is_ten_wide() {
        let mut listing = Listing::new(&COLUMNS[..2]);
        listing.push("a", vec!["a".into(), "b".into()], vec![]);
        let output = Output { format: Format::Table, quiet: false };
        assert_eq!(listing.render(&output), "ID        NAME\na         b\n");
    }

    #[test]
    fn json_is_one_object_per_line_with_sorted_keys() {
        check(
            Format::Json,
            false,
            "{\"ID\":\"abcdefghijkl\",\"Name\":\"wéb\",\"Ports\":\"*:8080->80/tcp\"}\n\
             {\"ID\":\"b\",\"Name\":\"a-name-that-is-long\",\"Ports\":\"\",\"Self\":true}\n",
        );
    }

    #[test]
    fn a_template_is_a_line_per_object_and_a_table_of_one_has_a_header() {
        let lines = "{{.ID}} {{.Self}}".parse().unwrap();
        check(lines, false, "abcdefghijkl <no value>\nb true\n");
        let columns = "table {{.Name}}\\t{{.Self}}".parse().unwrap();
        check(
            columns,
            false,
            "NAME                  SELF\n\
             wéb                   <no value>\n\
             a-name-that-is-long   true\n",
        );
        let refused = "yaml".parse::<Format>().unwrap_err();
        assert_eq!(refused, "use table, json or a template such as '{{.ID}}'");
    }

    #[test]
    fn quiet_prints_whole_ids() {
        check(Format::Json, true, "abcdefghijklmnop\nb\n");
    }
}
