//! Where a command's files go: checked before hours are spent on their contents.

use std::fs;
use std::iter;
use std::path::{Path, PathBuf};

use ddpm_run::RunPaths;
use ddpm_train::config::{Resolved, TrainConfig};
use ddpm_train::exchange::Model;

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
    /// One picture, or a drawing (SVG).
    #[cfg_attr(not(feature = "plot"), expect(dead_code, reason = "only plots are drawings"))]
    Plot,
    /// One picture where the name ends in .png, else a folder of them.
    PngOrFolder,
    /// A folder of other files.
    Folder,
    /// Tensors.
    Safetensors,
    /// A trace.
    Trace,
}

/// Whether `--out` names a picture, and not a folder for many.
pub(super) fn wants_grid(out: &Path) -> bool {
    has_extension(out, "png") && !out.is_dir()
}

/// Whether a drawing is to be written, and not pixels.
pub(super) fn is_svg(out: &Path) -> bool {
    has_extension(out, "svg")
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
        if matches!(kind, Kind::Png | Kind::Plot | Kind::Safetensors | Kind::Trace) && path.is_dir() {
            return refuse("a folder is there", "give it the name of a file");
        }
        match kind {
            Kind::Png if !has_extension(path, "png") => refuse("a PNG is written", "give it a name that ends in .png"),
            Kind::Plot if !has_extension(path, "png") && !is_svg(path) => {
                refuse("a PNG or an SVG is written", "give it a name that ends in .png or .svg")
            }
            Kind::PngOrFolder if is_other_picture(path) && !path.is_dir() => {
                refuse("only PNGs are written", "give it a name that ends in .png")
            }
            _ => Ok(()),
        }
    }

    /// Refuses a place inside the data: the next look at it would find one image more.
    pub(super) fn refuse_inside(&self, data: &Path) -> Result<(), Failure> {
        let Self { option, path, .. } = self;
        if !lies_inside(path, data) {
            return Ok(());
        }
        let message = format!("{option} {}: lies inside the data, {}", path.display(), data.display());
        Err(Failure::new(ExitCode::Usage, message).hint("name a place outside of it"))
    }

    fn make_folder(&self) -> Result<(), Failure> {
        let Self { option, path, kind } = self;
        let is_folder = *kind == Kind::Folder || *kind == Kind::PngOrFolder && !wants_grid(path);
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

/// The folder that `path` is to be written to.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a file at `path` would lie in the folder `data` or below it.
fn lies_inside(path: &Path, data: &Path) -> bool {
    if !data.is_dir() {
        return false;
    }
    // The place may have to be made yet: what counts is the part that is there.
    let place = if path.is_dir() { path } else { folder_of(path) };
    let there = place.ancestors().find_map(|folder| {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        folder.canonicalize().ok()
    });
    there.zip(data.canonicalize().ok()).is_some_and(|(there, data)| there.starts_with(data))
}

/// The images that a run was trained on, as far as they are a folder that can be found. A relative `data.source` counts from where the
/// run was started: the directory that `run.dir` leads from to the run, if it is relative too.
fn data_of_run(config: &TrainConfig, run: &Path) -> PathBuf {
    let (source, dir) = (Path::new(&config.data.source), Path::new(&config.run.dir));
    // An import has no images.
    let is_relative = dir.is_relative() && !source.as_os_str().is_empty();
    let root = run.canonicalize().ok().filter(|root| is_relative && root.ends_with(dir));
    let start = root.as_deref().and_then(|root| root.ancestors().nth(dir.components().count()));
    start.map(|start| start.join(source)).filter(|data| data.is_dir()).unwrap_or_else(|| source.to_owned())
}

/// The same of the run in `root`, by its configuration as it was written: `run.dir` counts from where the run was started. `None`
/// where that cannot be read: then there is no data to protect.
pub(super) fn data_of_root(root: &Path) -> Option<PathBuf> {
    let path = RunPaths::new(root).config();
    let text = fs::read_to_string(&path).ok()?;
    let resolved = Resolved::from_layers(&path, &text, iter::empty(), &[]).ok()?;
    Some(data_of_run(&resolved.config, root))
}

/// The same of a model, which may be no run's.
pub(super) fn data_of(model: &Model) -> PathBuf {
    // runs/NAME/checkpoints/step-...
    let run = model.origin.ancestors().nth(2).unwrap_or(&model.origin);
    data_of_run(&model.config, run)
}

/// Where pictures go: the place that `named` says, or else a name in the current directory that is not taken.
///
/// # Errors
/// The place lies inside the folder `data`.
pub(super) fn out(named: Option<&Path>, data: &Path) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        Place { option: "--out", path, kind: Kind::PngOrFolder }.refuse_inside(data)?;
        return Ok(path.to_owned());
    }
    let path = free_name("samples", "png");
    Place { option: "--out", path: &path, kind: Kind::PngOrFolder }.refuse_inside(data)?;
    Ok(path)
}

/// A name in the current directory that is not taken: `stem.extension`, `stem-2.extension`, ...
pub(super) fn free_name(stem: &str, extension: &str) -> PathBuf {
    let name = |number: u32| {
        PathBuf::from(if number == 1 { format!("{stem}.{extension}") } else { format!("{stem}-{number}.{extension}") })
    };
    let taken = |path: &PathBuf| path.symlink_metadata().is_ok();
    (1..=u32::MAX).map(name).find(|path| !taken(path)).unwrap_or_else(|| name(1))
}

/// Refuses a folder in which pictures would stay beside the `num` new ones: a score of all would be that of neither.
///
/// # Errors
/// There are such pictures.
pub(super) fn refuse_stale(folder: &Path, num: usize) -> Result<(), Failure> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name()));
    let number = |name: &Path| name.file_stem()?.to_str()?.parse().ok().filter(|&k| name == Path::new(&file_name(k)));
    let is_new = |name: &Path| number(name).is_some_and(|k| k < num);
    // A kill leaves hidden names of unfinished files, which the next try overwrites.
    let is_hidden = |name: &Path| name.as_os_str().as_encoded_bytes().starts_with(b".");
    let is_stale = |name: &PathBuf| is_picture(name) && !is_hidden(name) && !is_new(name);
    let mut stale: Vec<PathBuf> = entries.map(PathBuf::from).filter(is_stale).collect();
    stale.sort_unstable();
    let Some(first) = stale.first() else { return Ok(()) };
    let more = match stale.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (folder, first) = (folder.display(), first.display());
    let message = format!("--out {folder}: {first}{more} would stay beside the {num} new images");
    Err(Failure::new(ExitCode::Usage, message).hint("name a new folder, or remove them first"))
}

/// The file of image `k` in a folder of single PNGs.
pub(super) fn file_name(k: usize) -> String {
    format!("{k:05}.png")
}

fn is_picture(path: &Path) -> bool {
    is_other_picture(path) || has_extension(path, "png")
}

fn is_other_picture(path: &Path) -> bool {
    ["jpg", "jpeg", "webp", "gif", "bmp"].iter().any(|extension| has_extension(path, extension))
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}
