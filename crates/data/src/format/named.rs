//! A source whose labels count the classes of a model: the same classes by name, whatever their order here.
//!
//! A label alone is a place in a sorted list, and shifts in silence where a folder lacks a class.

use std::sync::Arc;

use super::{Objects, RawImage, Source};
use crate::error::{DataError, shown};

/// Classes named in a sentence; more of them are counted.
const NAMED: usize = 12;

/// `source` with labels that are places in `names`. A source without names keeps its labels.
///
/// # Errors
/// It has a class that is not in `names`.
pub fn with_classes(source: Arc<dyn Source>, names: &[String]) -> Result<Arc<dyn Source>, DataError> {
    let there = match source.class_names() {
        Some(there) if there != names => there,
        _ => return Ok(source),
    };
    let place = |name: &String| names.iter().position(|known| known == name).and_then(|at| u32::try_from(at).ok());
    let labels: Vec<Option<u32>> = there.iter().map(place).collect();
    let unknown: Vec<_> =
        there.iter().zip(&labels).filter(|(_, label)| label.is_none()).map(|(name, _)| name).collect();
    if !unknown.is_empty() {
        let (unknown, known) = (listed(&unknown), listed(&names.iter().collect::<Vec<_>>()));
        return Err(DataError::UnknownClasses { place: source.describe(), unknown, known });
    }
    let missing: Vec<_> = names.iter().filter(|name| !there.contains(name)).collect();
    let mut notices = source.notices().to_vec();
    if !missing.is_empty() {
        notices.push(format!("of the model's {} classes there are no images of {}", names.len(), listed(&missing)));
    }
    let labels = labels.into_iter().flatten().collect();
    Ok(Arc::new(Named { names: names.to_vec(), labels, notices, inner: source }))
}

/// Names in a sentence.
fn listed(names: &[&String]) -> String {
    let shown: Vec<_> = names.iter().take(NAMED).map(|name| shown(name)).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.join(", "))
}

/// See [`with_classes`].
struct Named {
    inner: Arc<dyn Source>,
    names: Vec<String>,
    /// The label here of each label there.
    labels: Vec<u32>,
    notices: Vec<String>,
}

impl Named {
    /// A label beyond the names there is one of no class here either.
    fn relabelled(&self, image: RawImage) -> RawImage {
        let label = image.label.map(|label| self.labels.get(label as usize).copied().unwrap_or(u32::MAX));
        RawImage { label, ..image }
    }
}

impl Source for Named {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        self.inner.read(index).map(|image| self.relabelled(image))
    }

    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        let read = self.inner.read_many(indices);
        read.into_iter().map(|image| image.map(|image| self.relabelled(image))).collect()
    }

    fn will_need(&self, indices: &[usize]) -> Result<(), DataError> {
        self.inner.will_need(indices)
    }

    fn class_names(&self) -> Option<&[String]> {
        Some(&self.names)
    }

    fn has_labels(&self) -> bool {
        self.inner.has_labels()
    }

    fn unlabelled(&self) -> usize {
        self.inner.unlabelled()
    }

    fn fingerprint(&self) -> &str {
        self.inner.fingerprint()
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn is_far(&self) -> bool {
        self.inner.is_far()
    }

    fn objects(&self) -> Option<Objects> {
        self.inner.objects()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use super::super::{OpenOptions, open};
    use super::*;
    use crate::testing::grey_png;

    fn folder(root: &Path, classes: &[&str]) -> Arc<dyn Source> {
        for class in classes {
            fs::create_dir_all(root.join(class)).unwrap();
            fs::write(root.join(class).join("1.png"), grey_png(4, 1)).unwrap();
        }
        open(root.to_str().unwrap(), &OpenOptions::default()).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn labels_follow_the_names_and_what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let source = with_classes(folder(dir.path(), &["bee", "cat"]), &names(&["ant", "cat", "bee"])).unwrap();
        let labels: Vec<_> = (0..2).map(|index| source.read(index).unwrap().label).collect();
        assert_eq!(labels, [Some(2), Some(1)]);
        let many = source.read_many(&[1, 0]);
        assert_eq!(many[0].as_ref().unwrap().label, Some(1));
        assert_eq!(source.class_names().unwrap(), ["ant", "cat", "bee"]);
        assert_eq!(source.notices(), ["of the model's 3 classes there are no images of ant"]);
    }

    #[test]
    fn a_class_that_the_model_does_not_know_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = with_classes(folder(dir.path(), &["bee", "cow"]), &names(&["ant", "bee"])).err().unwrap();
        assert!(error.to_string().ends_with("cow is no class of the model, which knows ant, bee"), "{error}");
        assert!(error.is_setting() && error.help().unwrap().contains("the model's names"));
    }

    #[test]
    fn the_same_names_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let source = folder(dir.path(), &["bee", "cat"]);
        assert!(Arc::ptr_eq(&with_classes(Arc::clone(&source), &names(&["bee", "cat"])).unwrap(), &source));
    }
}
