//! TOML texts as a list of assignments, each with the line it came from.

use serde_json::{Map, Number, Value};
use toml::de::{DeTable, DeValue};

/// `key = value`, where `key` is the whole path (`train.lr`).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Assignment {
    pub(super) key: String,
    pub(super) value: Value,
    /// Line in the file, from 1.
    pub(super) line: usize,
}

/// What is wrong with a text, and in which line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) message: String,
    pub(super) line: usize,
}

/// The assignments of a whole file, in its order. An empty table is assigned to its own name.
pub(super) fn parse_file(text: &str) -> Result<Vec<Assignment>, Malformed> {
    let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| Malformed {
        message: error.message().replace('\n', ", "),
        line: line_of(error.span().map_or(0, |span| span.start)),
    })?;
    let mut assignments = Vec::new();
    collect("", table.get_ref(), &line_of, &mut assignments)?;
    Ok(assignments)
}

fn collect(
    prefix: &str,
    table: &DeTable<'_>,
    line_of: &dyn Fn(usize) -> usize,
    into: &mut Vec<Assignment>,
) -> Result<(), Malformed> {
    for (key, value) in table {
        let line = line_of(key.span().start);
        let key = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => collect(&format!("{key}."), inner, line_of, into)?,
            DeValue::Table(_) => into.push(Assignment { key, value: Value::Object(Map::new()), line }),
            other => {
                let value =
                    to_json(other).map_err(|message| Malformed { message: format!("{key} = {message}"), line })?;
                into.push(Assignment { key, value, line });
            }
        }
    }
    Ok(())
}

/// A value as written in a file; text that is no TOML value is a string, so that quotes can be left out.
pub(super) fn parse_value(text: &str) -> Value {
    let text = text.trim();
    let parsed = DeValue::parse(text).ok().and_then(|value| to_json(value.get_ref()).ok());
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// A TOML value as JSON; dates and numbers that JSON lacks are refused.
fn to_json(value: &DeValue<'_>) -> Result<Value, String> {
    match value {
        DeValue::String(text) => Ok(Value::String(text.to_string())),
        DeValue::Boolean(value) => Ok(Value::Bool(*value)),
        DeValue::Integer(integer) => integer_to_json(integer.as_str(), integer.radix()),
        DeValue::Float(float) => float_to_json(float.as_str()),
        DeValue::Array(items) => {
            items.iter().map(|item| to_json(item.get_ref())).collect::<Result<_, _>>().map(Value::Array)
        }
        DeValue::Datetime(date) => Err(format!("{date}: no key takes a date; did you mean a string in quotes?")),
        DeValue::Table(_) => Err("{...}: no key takes a table".to_owned()),
    }
}

fn integer_to_json(digits: &str, radix: u32) -> Result<Value, String> {
    let digits = digits.replace('_', "");
    if let Ok(value) = u64::from_str_radix(&digits, radix) {
        return Ok(value.into());
    }
    i64::from_str_radix(&digits, radix).map(Value::from).map_err(|_| format!("{digits}: the number is too large"))
}

fn float_to_json(digits: &str) -> Result<Value, String> {
    let number = digits.replace('_', "").parse().ok().and_then(Number::from_f64);
    number.map(Value::Number).ok_or_else(|| format!("{digits}: not a finite number"))
}

/// A value as written in a TOML file; an unset optional key is `"none"`.
pub fn to_toml(value: &Value) -> String {
    match value {
        Value::Null => "\"none\"".to_owned(),
        Value::Number(number) if number.is_f64() => float_to_toml(number.as_f64().unwrap_or_default()),
        Value::Array(items) => format!("[{}]", items.iter().map(to_toml).collect::<Vec<_>>().join(", ")),
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        other => other.to_string(),
    }
}

/// The shortest digits that read back as the same f64; small and large ones with an exponent.
fn float_to_toml(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-3..1e6).contains(&size) { format!("{value:e}") } else { format!("{value:?}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn assignment(key: &str, value: Value, line: usize) -> Assignment {
        Assignment { key: key.to_owned(), value, line }
    }

    #[test]
    fn assignments_know_their_lines() {
        let text = "# comment\n[train]\nlr = 1e-4\nbetas = [0.9,\n 0.99]\n\n[data]\nflip = true\nsource = \"x\"\n";
        let want = [
            assignment("train.lr", json!(1e-4), 3),
            assignment("train.betas", json!([0.9, 0.99]), 4),
            assignment("data.flip", json!(true), 8),
            assignment("data.source", json!("x"), 9),
        ];
        assert_eq!(parse_file(text).unwrap(), want);
    }

    #[test]
    fn a_syntax_error_is_reported_with_its_line() {
        let error = parse_file("[train]\nlr = \n").unwrap_err();
        assert_eq!(error.line, 2, "{error:?}");
    }

    #[test]
    fn numbers_beyond_json_are_refused() {
        assert!(parse_file("a = nan").unwrap_err().message.contains("not a finite number"));
        assert!(parse_file("a = 99999999999999999999").is_err());
        assert!(parse_file("a = 1979-05-27").unwrap_err().message.contains("date"));
    }

    #[test]
    fn a_value_without_quotes_is_a_string() {
        assert_eq!(parse_value("cosine"), json!("cosine"));
        assert_eq!(parse_value("1e-4"), json!(1e-4));
        assert_eq!(parse_value("[32, 64]"), json!([32, 64]));
        assert_eq!(parse_value("0x10"), json!(16));
        assert_eq!(parse_value("-3"), json!(-3));
        assert_eq!(parse_value("true"), json!(true));
        assert_eq!(parse_value("a b = c"), json!("a b = c"));
        assert_eq!(parse_value(""), json!(""));
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        for value in
            [json!(2e-4), json!(0.5), json!(1.0), json!(3000), json!([0.9, 0.999]), json!("a \"b\" \\"), json!(true)]
        {
            assert_eq!(parse_value(&to_toml(&value)), value, "{}", to_toml(&value));
        }
        assert_eq!(to_toml(&json!(2e-4)), "2e-4");
    }
}
