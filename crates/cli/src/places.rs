//! Where a command's files go: checked before hours are spent on their contents.

use std::fs;
use std::path::Path;

use crate::failure::{ExitCode, Failure};

/// A file that a command will write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The option that names it.
    pub(super) option: &'static str,
    /// The user's value for it.
    pub(super) path: &'a Path,
    /// The kind of output.
    pub(super) kind: Kind,
}

/// Kinds of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One picture.
    Png,
    /// One picture where the name ends in .png, else a folder of them.
    PngOrFolder,
    /// Tensors.
    Safetensors,
    /// A trace.
    Trace,
}

/// Whether `--out` names a picture, and not a folder for many.
pub(super) fn wants_grid(out: &Path) -> bool {
    has_extension(out, "png") && !out.is_dir()
}

/// Makes the folders that `places` need, and refuses invalid names.
///
/// # Errors
/// Exit code 2 for a name that does not fit its kind, or two files of one name; 1 for a folder that cannot be made.
pub(super) fn prepare(places: &[Place<'_>]) -> Result<(), Failure> {
    for (k, place) in places.iter().enumerate() {
        place.check_name()?;
        place.make_folder()?;
        let inside = |other: &&Place<'_>| place.path == other.path || place.path.parent() == Some(other.path);
        if let Some(other) = places[..k].iter().find(inside) {
            let message = format!("{} {}: {} writes there too", place.option, place.path.display(), other.option);
            return Err(Failure::new(ExitCode::Usage, message).hint("give each a place of its own"));
        }
    }
    Ok(())
}

impl Place<'_> {
    fn check_name(&self) -> Result<(), Failure> {
        let Self { option, path, kind } = self;
        let refuse = |what: &str, hint: &str| {
            let message = format!("{option} {}: {what}", path.display());
            Err(Failure::new(ExitCode::Usage, message).hint(hint))
        };
        if matches!(kind, Kind::Png | Kind::Safetensors | Kind::Trace) && path.is_dir() {
            return refuse("a folder is there", "give it the name of a file");
        }
        match kind {
            Kind::Png if !has_extension(path, "png") => refuse("a PNG is written", "give it a name that ends in .png"),
            Kind::PngOrFolder if is_other_picture(path) && !path.is_dir() => {
                refuse("only PNGs are written", "give it a name that ends in .png")
            }
            _ => Ok(()),
        }
    }

    fn make_folder(&self) -> Result<(), Failure> {
        let Self { option, path, kind } = self;
        let is_folder = *kind == Kind::PngOrFolder && !wants_grid(path);
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        if folder.as_os_str().is_empty() {
            return Ok(());
        }
        fs::create_dir_all(folder).map_err(|error| {
            let message = format!("{option} {}: cannot make the folder {}", path.display(), folder.display());
            Failure::caused_by(ExitCode::Other, message, &error).hint("name a place that you may write to")
        })
    }
}

fn is_other_picture(path: &Path) -> bool {
    ["jpg", "jpeg", "webp", "gif", "bmp"].iter().any(|extension| has_extension(path, extension))
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}
