//! An image file.
#![no_main]

use std::sync::Arc;

use ddpm_data::{DataError, RawImage, Source};
use libfuzzer_sys::fuzz_target;

/// A source of one image.
struct One(RawImage);

impl Source for One {
    fn len(&self) -> usize {
        1
    }

    fn read(&self, _: usize) -> Result<RawImage, DataError> {
        Ok(self.0.clone())
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn has_labels(&self) -> bool {
        false
    }

    fn fingerprint(&self) -> &str {
        "one"
    }

    fn describe(&self) -> String {
        "one image".to_owned()
    }
}

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let image = RawImage { id: "image".to_owned(), bytes: bytes.to_vec().into(), label: None };
    let source: Arc<dyn Source> = Arc::new(One(image));
    ddpm_fuzz::survives(|| ddpm_fuzz::look_at(&*source));
});
