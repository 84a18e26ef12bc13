//! Labels that are texts become classes: whole numbers are taken as they are, any other values are names, and are numbered
//! in their order.

use std::collections::BTreeSet;

use serde_json::Value;

use super::ranges::Span;

/// What the label texts of a source mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Classes {
    Numbers,
    /// Sorted.
    Names(Vec<String>),
}

impl Classes {
    /// All texts of a source decide together: one name makes all of them names.
    pub(super) fn of<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let texts: BTreeSet<&str> = texts.collect();
        if texts.iter().all(|text| text.parse::<i64>().is_ok()) {
            return Self::Numbers;
        }
        Self::Names(texts.into_iter().map(str::to_owned).collect())
    }

    /// The class that a text means. A negative number is no label, as everywhere in `datasets`.
    pub(super) fn class(&self, text: &str) -> Option<u32> {
        match self {
            Self::Numbers => text.parse().ok().and_then(|number: i64| u32::try_from(number).ok()),
            Self::Names(names) => names.binary_search_by(|name| name.as_str().cmp(text)).ok().map(|at| at as u32),
        }
    }

    /// The label of each text, as a span has it.
    pub(super) fn labels(&self, texts: &[String]) -> Vec<u32> {
        texts.iter().map(|text| self.class(text).unwrap_or(Span::NONE)).collect()
    }

    pub(super) fn into_names(self) -> Option<Vec<String>> {
        match self {
            Self::Numbers => None,
            Self::Names(names) => Some(names),
        }
    }
}

/// What is said of a column that is named like a label and is none.
pub(super) fn odd_label(column: &str, kind: &str) -> String {
    format!("the column {column} is no class, as it holds {kind} and neither whole numbers nor names")
}

/// Names of classes in JSON: a list, or (as in a dataset card) a map from number to name.
pub(super) fn names_in(json: &Value) -> Option<Vec<String>> {
    let name = |value: &Value| value.as_str().map(str::to_owned);
    match json {
        Value::Array(names) => names.iter().map(name).collect(),
        Value::Object(names) => (0..names.len()).map(|i| names.get(&i.to_string()).and_then(name)).collect(),
        _ => None,
    }
}

/// The names of a feature of Hugging Face's `datasets` that is a ClassLabel.
pub(super) fn names_of_feature(feature: &Value) -> Option<Vec<String>> {
    let places = ["/names", "/class_label/names", "/dtype/class_label/names"];
    names_in(places.iter().find_map(|place| feature.pointer(place))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_stay_and_names_are_numbered_in_their_order() {
        let numbers = Classes::of(["3", "-1", "07"].into_iter());
        assert_eq!(["3", "-1", "07"].map(|text| numbers.class(text)), [Some(3), None, Some(7)]);
        let names = Classes::of(["dog", "cat", "7", "dog"].into_iter());
        assert_eq!(["7", "cat", "dog", "cow"].map(|text| names.class(text)), [Some(0), Some(1), Some(2), None]);
        assert_eq!(names.into_names(), Some(["7", "cat", "dog"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn class_names_are_read_as_list_and_as_map() {
        let list = serde_json::json!({"names": ["cat", "dog"], "_type": "ClassLabel"});
        assert_eq!(names_of_feature(&list).unwrap(), ["cat", "dog"]);
        let map = serde_json::json!({"dtype": {"class_label": {"names": {"1": "dog", "0": "cat"}}}});
        assert_eq!(names_of_feature(&map).unwrap(), ["cat", "dog"]);
        let holes = serde_json::json!({"names": {"0": "cat", "2": "dog"}});
        assert_eq!(names_of_feature(&holes), None);
        assert_eq!(names_of_feature(&serde_json::json!({"dtype": "int64"})), None);
    }
}
