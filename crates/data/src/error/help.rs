//! What to do about each error.

use super::{DataError, WORKS_TODAY, listed};

impl DataError {
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::NotFound { .. } => {
                let here = std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_else(|_| ".".into());
                format!("relative paths start at {here}; data.source may be {WORKS_TODAY}")
            }
            Self::Io { .. } => "check that the file exists and that you may read it".into(),
            Self::UnknownBuiltin { known, .. } => format!("embedded data sets: {}", known.join(", ")),
            Self::Changed { .. } => "start again once the files are no longer being written".into(),
            Self::Unavailable { .. } if self.is_network() => {
                "check the address and the network; then the same command goes on".into()
            }
            Self::Unavailable { .. } => "check that its disk is mounted; then the same command goes on".into(),
            Self::Refused { place, refusal } => refusal.help(&place.to_string_lossy()),
            Self::BadAddress { help, .. } => (*help).to_owned(),
            Self::OtherFormat { advice: "", .. } | Self::Unsupported { .. } => format!("data.source may be {WORKS_TODAY}"),
            Self::OtherFormat { advice, .. } => (*advice).to_owned(),
            Self::BadPattern { .. } => {
                "braces stand for shards of one folder: shards/train-{000000..000099}.tar; or give the folder".into()
            }
            Self::FormatMismatch { .. } => "leave data.format out, or set it to \"auto\"".into(),
            Self::UnknownSplit { found, .. } => format!("set data.split to one that is there, or to \"all\"; found {}", listed(found)),
            Self::NoTrainSplit { .. } => "set data.split to one of them, or to \"all\"".into(),
            Self::BadMetadata { path, .. } if path.extension().is_some_and(|end| end == "json") => {
                "correct the file, or write the data set again with the program that made it".into()
            }
            Self::BadMetadata { .. } => {
                "each row needs file_name, the image's path from there, and may have a label; or take the file away".into()
            }
            Self::BadSlice { len: None, .. } => {
                "write for example \"train[:9000]\" for the first 9,000 samples, or \"[-10%:]\" for the last tenth".into()
            }
            Self::BadSlice { len: Some(_), .. } => "choose bounds of which the first comes before the second".into(),
            Self::Empty { .. } => format!("point data.source at {WORKS_TODAY}"),
            Self::BadParquet { .. } | Self::BadFile { .. } => "the file is damaged or was only partly downloaded: fetch it again".into(),
            Self::BadIndex { removed: true, .. } => "it was removed: the same command makes it again".into(),
            Self::BadIndex { removed: false, .. } => "remove it: the same command then makes it again".into(),
            Self::PackTarget { .. } => "name a folder that is empty or does not exist yet; a folder that was begun goes on with the same options".into(),
            Self::NotWhole { .. } => "unpack all of its files, under their own names, into one folder".into(),
            Self::NoImageColumn { advice: Some(advice), .. } => advice.clone(),
            Self::NoImageColumn { .. } => "store the encoded images (PNG, JPEG) in a struct column `image` {bytes, path}".into(),
            Self::ClassNamesDiffer { .. } => "train on one of the two, or choose a part with data.split".into(),
            Self::Unreadable { .. } => {
                "set data.on_corrupt = \"skip\", or repair or remove it".into()
            }
            Self::TooManyUnreadable { .. } => {
                "raise data.max_corrupt, or repair or remove them".into()
            }
            Self::NothingReadable { .. } => {
                "repair or remove them".into()
            }
            Self::NoLabels { .. } | Self::LabelMissing { .. } | Self::Unlabelled { .. } => {
                "leave data.num_classes out for an unconditional model, or label every image (one sub-folder per class)".into()
            }
            Self::UnknownClasses { .. } => {
                "give the classes the model's names, or leave these out".into()
            }
            Self::LabelOutOfRange { label, .. } => format!("set data.num_classes to at least {}", u64::from(*label) + 1),
            Self::CropNeeded { .. } => "set data.crop to \"center\" or \"random\"; or, in another run, raise data.image_size".into(),
            Self::WorkerPanicked { .. } => "this is a bug: please report it with the message above".into(),
            Self::NoThread { .. } => "set data.workers to a smaller number".into(),
            Self::Setting { .. } | Self::NoSuchSample { .. } | Self::Stopped => return None,
        };
        Some(text)
    }
}
