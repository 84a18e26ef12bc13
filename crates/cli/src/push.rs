//! `ddpm push`: a model to the Hugging Face hub.

use std::path::Path;

use ddpm_hub::{Pushed, RepoName, Settings, Spool, Target};
use ddpm_run::memory::format_bytes;
use ddpm_train::exchange::{Measured, Model};
use ddpm_train::publish::{Publication, spool_of};
use serde_json::{Value, json};

use super::args::PushArgs;
use super::output::Output;
use crate::failure::{ExitCode, Failure};

/// Makes the folder, sends it, and prints where it is.
pub(super) fn run(args: &PushArgs, output: &Output) -> Result<(), Failure> {
    if !cfg!(feature = "hub") {
        let message = format!("push {}: this program was built without the feature `hub`", args.model.display());
        return Err(Failure::new(ExitCode::Usage, message)
            .hint("write a folder with `ddpm export` and upload it: `hf upload owner/name DIR`"));
    }
    let settings = Settings::from_environment()?;
    let measured = args.metrics.as_deref().map(Measured::read).transpose()?;
    let device = args.device.open()?;
    let model = Model::open(&args.model, args.raw, &device)?;
    let publication = publication(args, &model, measured)?;
    let target = &publication.target;
    if !args.dry_run {
        // Before minutes are spent on samples.
        settings.may_push(&target.repo)?;
    }
    let mut counter = output.counter(publication.samples, "images");
    let spool = spool_of(&model, &publication, &mut |done| counter.set(done as u64, ""));
    drop(counter);
    let spool = spool?;
    if spool.was_there() {
        let place = spool.place().display();
        tracing::info!(%place, "finishing a push that waits in {place}");
    }
    let sent = Sent::of(&spool);
    if args.dry_run {
        let folder = spool.folder();
        return output.result(&sent.document(target, &model.origin, None, Some(&folder)), || {
            let list: String =
                spool.files().map(|(path, size)| format!("  {path}  {}\n", format_bytes(size))).collect();
            format!(
                "dry run: nothing was sent to {}/{}\n{list}to look at: {}\nthe same command without --dry-run sends it",
                settings.endpoint,
                target.repo,
                folder.display()
            )
        });
    }
    let (size, endpoint, repo) = (format_bytes(sent.bytes), &settings.endpoint, &target.repo);
    tracing::info!(bytes = sent.bytes, %repo, "pushing {size} to {endpoint}/{repo}");
    let pushed = spool.push(settings)?;
    output.result(&sent.document(target, &model.origin, Some(&pushed), None), || text(&target.repo, &sent, &pushed))
}

fn publication(args: &PushArgs, model: &Model, measured: Option<Measured>) -> Result<Publication, Failure> {
    let configured = &model.config.hub;
    let repo = match &args.repo {
        Some(repo) => repo.clone(),
        None if configured.repo.is_empty() => {
            let message = format!("--repo is missing, and hub.repo of {} is not set", args.model.display());
            return Err(Failure::new(ExitCode::Usage, message).hint("write --repo owner/name"));
        }
        None => configured.repo.parse().map_err(|expected: String| {
            Failure::new(ExitCode::Usage, format!("hub.repo = \"{}\": {expected}", configured.repo))
                .hint("write --repo owner/name")
        })?,
    };
    let private = args.private || (args.repo.is_none() && configured.private);
    let (revision, licence) = (args.revision.clone(), args.licence.clone());
    let (samples, epsilon_only) = (args.samples, args.epsilon_only);
    Ok(Publication { target: Target { repo, revision, private }, samples, epsilon_only, licence, measured })
}

/// The files to send, or that were sent.
struct Sent {
    files: Vec<String>,
    bytes: u64,
}

impl Sent {
    fn of(spool: &Spool) -> Self {
        let files = spool.files().map(|(path, _)| path.to_owned()).collect();
        Self { files, bytes: spool.files().map(|(_, size)| size).sum() }
    }

    fn document(&self, target: &Target, model: &Path, pushed: Option<&Pushed>, folder: Option<&Path>) -> Value {
        json!({
            "repo": target.repo.to_string(),
            "revision": target.revision.to_string(),
            "model": model,
            "files": self.files,
            "bytes": self.bytes,
            "commit": pushed.map(|pushed| &pushed.commit),
            "url": pushed.map(|pushed| &pushed.url),
            "unchanged": pushed.is_some_and(|pushed| pushed.was_there),
            "dry_run": pushed.is_none(),
            "folder": folder,
        })
    }
}

fn text(repo: &RepoName, sent: &Sent, pushed: &Pushed) -> String {
    let Pushed { commit, was_there, url } = pushed;
    let done = if *was_there { "was there already" } else { "pushed" };
    let (files, bytes) = (sent.files.len(), format_bytes(sent.bytes));
    format!(
        "{done}: {files} files, {bytes}, commit {commit}\n{url}\nnext:\n  ddpm sample hf://{repo}\n  \
         from Python: DDPMPipeline.from_pretrained(\"{repo}\")"
    )
}
