//! What `data.source` names: a path of this machine, or a place in a store behind a network. Every source passes through here.
//!
//! | written | means |
//! | --- | --- |
//! | `s3://bucket/path` | Amazon S3, and what speaks its language |
//! | `gs://bucket/path` | Google Cloud Storage |
//! | `az://container/path` | Azure Blob Storage |
//! | `https://host/path`, `http://host/path` | a web server; a query (`?X-Amz-Signature=...`) goes with every request |
//! | `hf://datasets/owner/name[@revision][/path]` | a data set of the Hugging Face hub |
//!
//! A query may be a signature, which lets whoever reads it read the data. So it is kept apart from the rest: neither
//! [`Address::place`] nor any error, hash or record has it.

use std::fmt;

use crate::error::DataError;

/// A store by its scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    S3,
    Google,
    Azure,
    Web,
    Hub,
}

/// Each scheme as it is written.
const SCHEMES: [(&str, Scheme); 6] = [
    ("s3://", Scheme::S3),
    ("gs://", Scheme::Google),
    ("az://", Scheme::Azure),
    ("https://", Scheme::Web),
    ("http://", Scheme::Web),
    ("hf://", Scheme::Hub),
];

/// Schemes that people write for one of ours, and what to write.
const OTHERS: [(&str, &str); 7] = [
    ("file://", "write the path alone"),
    ("s3a://", "write s3://bucket/path"),
    ("gcs://", "write gs://bucket/path"),
    ("azure://", "write az://container/path"),
    ("abfs://", "write az://container/path"),
    ("abfss://", "write az://container/path"),
    ("hdfs://", "copy the files to a disk or to one of the stores that are read"),
];

/// A place in a store behind a network.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) scheme: Scheme,
    /// The scheme with the bucket, the host or the data set: `s3://bucket`, `hf://datasets/owner/name@main`.
    pub(crate) root: String,
    /// Below the root, without a slash at either end; empty for all of it.
    pub(crate) path: String,
    query: Option<String>,
    /// Written with a slash at its end: no file is meant.
    is_folder: bool,
}

impl Address {
    /// The address that `source` is; `None` for a path of this machine.
    ///
    /// # Errors
    /// A scheme that is not read, or an address that is not whole.
    pub(crate) fn parse(source: &str) -> Result<Option<Self>, DataError> {
        let Some((name, rest)) = source.split_once("://").filter(|(name, _)| is_scheme(name)) else { return Ok(None) };
        let bad = |reason: &str, help| DataError::BadAddress {
            found: without_query(source).to_owned(),
            reason: reason.to_owned(),
            help,
        };
        let written = format!("{}://", name.to_ascii_lowercase());
        let Some(&(written, scheme)) = SCHEMES.iter().find(|(known, _)| *known == written) else {
            let advice = OTHERS.iter().find(|(known, _)| *known == written).map(|(_, advice)| *advice);
            let help = advice.unwrap_or("s3://, gs://, az://, https:// and hf://datasets/ are read; a path has no ://");
            return Err(bad(&format!("{written} is no store that is read"), help));
        };
        // In a store a question mark is a letter of a name.
        let (rest, query) = match (scheme, rest.split_once('?')) {
            (Scheme::Web, Some((rest, query))) => (rest, Some(query.to_owned())),
            _ => (rest, None),
        };
        let parts = if scheme == Scheme::Hub { 3 } else { 1 };
        let cut = rest.match_indices('/').nth(parts - 1).map_or(rest.len(), |(at, _)| at);
        let (root, path) = rest.split_at(cut);
        let (path, is_folder) = (path.trim_matches('/'), path.ends_with('/'));
        if scheme == Scheme::Hub {
            let data_set = root.strip_prefix("datasets/").is_some_and(|name| name.split('/').count() == 2);
            if !data_set {
                return Err(bad(
                    "it names no data set of the hub",
                    "write hf://datasets/owner/name, or with @revision",
                ));
            }
        }
        if root.is_empty() {
            let help = "write s3://BUCKET/path, https://HOST/path, hf://datasets/OWNER/NAME";
            return Err(bad("the bucket or the host is missing", help));
        }
        if root.contains('@') && scheme != Scheme::Hub {
            return Err(bad(
                "it holds a user name or a password",
                "credentials come from the environment; see docs/stores.md",
            ));
        }
        if path.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(bad("a store has no . and no ..", "write the path as the store lists it"));
        }
        Ok(Some(Self { scheme, root: format!("{written}{root}"), path: path.to_owned(), query, is_folder }))
    }

    /// The whole of it, for a person and as an identity: without its query.
    pub(crate) fn place(&self) -> String {
        if self.path.is_empty() { self.root.clone() } else { format!("{}/{}", self.root, self.path) }
    }

    /// What is sent behind each address, and shown nowhere.
    #[cfg(feature = "stores")]
    pub(crate) fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The same path below another root.
    #[cfg(feature = "stores")]
    pub(crate) fn served_at(&self, scheme: Scheme, root: &str) -> Self {
        Self { scheme, root: root.to_owned(), ..self.clone() }
    }

    /// A folder or file below.
    #[cfg(feature = "stores")]
    pub(crate) fn join(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) };
        Self { path, ..self.clone() }
    }

    /// The folder above, and the name in it; no name where a folder is meant.
    pub(crate) fn split(&self) -> (Self, String) {
        if self.is_folder {
            return (self.clone(), String::new());
        }
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        (Self { path: folder.to_owned(), ..self.clone() }, name.to_owned())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.place())
    }
}

/// Letters, digits, `+`, `-` and `.` (RFC 3986); two letters at least, for `c://` is a path.
fn is_scheme(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    name.len() > 1 && name.bytes().all(letter)
}

/// A source as it may be shown and kept: a web address loses its query, which may be a signature; everything else stays.
pub fn without_query(source: &str) -> &str {
    let web = ["https://", "http://"]
        .iter()
        .any(|scheme| source.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    source.split_once('?').filter(|_| web).map_or(source, |(before, _)| before)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parts(source: &str) -> (Scheme, String, String, Option<String>) {
        let Address { scheme, root, path, query, .. } = Address::parse(source).unwrap().unwrap();
        (scheme, root, path, query)
    }

    #[test]
    fn an_address_is_a_store_and_a_path_in_it() {
        let whole = |scheme, root: &str, path: &str, query: Option<&str>| {
            (scheme, root.to_owned(), path.to_owned(), query.map(str::to_owned))
        };
        assert_eq!(parts("s3://b/a/t-{0..9}.tar"), whole(Scheme::S3, "s3://b", "a/t-{0..9}.tar", None));
        assert_eq!(parts("S3://b"), whole(Scheme::S3, "s3://b", "", None));
        assert_eq!(parts("s3://b/why?.tar"), whole(Scheme::S3, "s3://b", "why?.tar", None));
        let signed = parts("https://h:8080/d/x.tar?sig=1?2");
        assert_eq!(signed, whole(Scheme::Web, "https://h:8080", "d/x.tar", Some("sig=1?2")));
        let hub = whole(Scheme::Hub, "hf://datasets/me/cats@v1", "data/x.parquet", None);
        assert_eq!(parts("hf://datasets/me/cats@v1/data/x.parquet"), hub);
        for path in ["/a/b", "a/b", "c://x", "./a://b", "dir/{0..3}.tar", "~/x"] {
            assert_eq!(Address::parse(path).unwrap(), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write() {
        for (bad, reason) in [
            ("file:///data", "file:// is no store that is read"),
            ("ftp://host/x", "ftp:// is no store that is read"),
            ("s3:///key", "the bucket or the host is missing"),
            ("https://me:secret@host/x.tar", "it holds a user name or a password"),
            ("s3://b/../c", "a store has no . and no .."),
            ("hf://me/cats", "it names no data set of the hub"),
            ("hf://datasets/cats", "it names no data set of the hub"),
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(error.to_string().ends_with(reason), "{bad}: {error}");
            assert!(error.is_setting() && error.help().is_some());
        }
    }

    #[test]
    fn a_signature_is_shown_nowhere() {
        let source = "https://host/x.tar?X-Amz-Signature=secret";
        let address = Address::parse(source).unwrap().unwrap();
        let shown = format!("{} {:?} {:?} {}", address.place(), address, address.split(), without_query(source));
        assert!(!shown.contains("secret"), "{shown}");
        let error = Address::parse("https:///x.tar?secret").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
        assert_eq!(without_query("s3://b/why?.tar"), "s3://b/why?.tar");
        assert_eq!(without_query("/data/why?/x"), "/data/why?/x");
    }
}
