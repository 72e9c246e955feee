//! CSV (RFC 4180) that a spreadsheet does not run.
//!
//! A field that begins with `=`, `+`, `-`, `@` or a control character is a
//! formula to a spreadsheet; it gets an apostrophe in front.

use serde::Serialize;
use serde_json::Value;

use crate::cli::exit::CliError;
use reseal_proto::facts::printable;

/// Rows with these JSON fields as columns; a path such as "certificate.serial" reaches inside.
pub(crate) fn render<T: Serialize>(rows: &[T], fields: &[&str]) -> Result<String, CliError> {
    let mut out = header(fields);
    for one in rows {
        out.push_str(&row(one, fields)?);
    }
    Ok(out)
}

/// The first line: the names of the columns.
pub(crate) fn header(fields: &[&str]) -> String {
    let mut out = String::new();
    line(&mut out, fields.iter().map(|field| (*field).to_owned()));
    out
}

/// One row.
pub(crate) fn row<T: Serialize>(row: &T, fields: &[&str]) -> Result<String, CliError> {
    let value = serde_json::to_value(row).map_err(|error| CliError::Other(error.into()))?;
    let mut out = String::new();
    line(&mut out, fields.iter().map(|field| flat(at(&value, field))));
    Ok(out)
}

fn line(out: &mut String, fields: impl Iterator<Item = String>) {
    for (index, field) in fields.enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&guarded(&field));
    }
    out.push_str("\r\n");
}

fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

fn flat(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join(" "),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", flat(value))).collect::<Vec<_>>().join(" ")
        }
    }
}

fn guarded(field: &str) -> String {
    let is_number = field.parse::<i64>().is_ok();
    let mut text = printable(field);
    if !is_number && text.starts_with(['=', '+', '-', '@', '\u{fffd}']) {
        text.insert(0, '\'');
    }
    if text.contains([',', '"']) || text.starts_with(' ') || text.ends_with(' ') {
        text = format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn nested_fields_become_columns() {
        let rows = [json!({"a": 1, "b": {"c": ["x", "y"], "d": null}, "e": {"k": "v"}})];
        assert_eq!(
            render(&rows, &["a", "b.c", "b.d", "e", "nothing.here"]).unwrap(),
            "a,b.c,b.d,e,nothing.here\r\n1,x y,,k=v,\r\n"
        );
    }

    #[test]
    fn formulas_are_text() {
        for (field, written) in [
            ("=1+1", "'=1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("-3", "-3"),
            ("-3+cmd|' /C calc'!A0", "'-3+cmd|' /C calc'!A0"),
            ("a,\"b\"", "\"a,\"\"b\"\"\""),
            ("\t=x", "'\u{fffd}=x"),
        ] {
            assert_eq!(guarded(field), written);
        }
    }

    proptest! {
        #[test]
        fn one_row_is_one_line(name in ".{0,40}") {
            let text = render(&[json!({"name": name})], &["name"]).unwrap();
            prop_assert_eq!(text.matches('\n').count(), 2);
        }
    }
}
