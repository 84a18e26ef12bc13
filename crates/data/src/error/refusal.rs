//! Why a store behind a network does not give what it was asked for, and what to do: most refusals are about credentials, of
//! which each store has its own.

/// See the module. None has a secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// 404.
    #[error("no such bucket, folder or file (404)")]
    Missing,
    /// 401 or 403: the status, and what the server calls it.
    #[error("access is refused ({0})")]
    Forbidden(String),
    /// There is nothing to prove who is asking.
    #[error("no credentials were found")]
    NoCredentials,
    /// The whole file comes where a piece was asked for.
    #[error("the server cannot send a part of a file (it does not answer requests for ranges)")]
    NoRanges,
    /// Only names that are known can be asked for.
    #[error("a web server does not say which files it has")]
    NoListing,
    /// The bucket lies elsewhere.
    #[error("the bucket is in another region")]
    Region,
    /// A variable of the environment, or a name, that no request can be made with.
    #[error("{what}: expected {expected}")]
    Malformed {
        /// Its name.
        what: String,
        /// What it may be.
        expected: &'static str,
    },
    /// This program was built without stores.
    #[error("this program was built without stores behind a network")]
    WithoutStores,
    /// What the Hugging Face hub said.
    #[error("{what}")]
    Hub {
        /// Its words, and what was asked.
        what: String,
        /// What to do.
        help: String,
    },
    /// What the server or its client said.
    #[error("{0}")]
    Other(String),
}

/// What each store takes for credentials.
const CREDENTIALS: [(&str, &str); 4] = [
    (
        "s3://",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket AWS_SKIP_SIGNATURE=true; for \
         another store than Amazon's AWS_ENDPOINT_URL",
    ),
    (
        "gs://",
        "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run `gcloud auth application-default login`",
    ),
    ("az://", "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_KEY"),
    ("hf://", "set HF_TOKEN to a token that may read it; for a gated data set accept its terms on its page"),
];

impl Refusal {
    /// What to do about it, for what lies at `place`.
    pub(crate) fn help(&self, place: &str) -> String {
        let credentials = CREDENTIALS.iter().find(|(scheme, _)| place.starts_with(scheme)).map(|(_, help)| *help);
        match self {
            Self::Missing => "check the address: names are case-sensitive".into(),
            Self::Forbidden(_) | Self::NoCredentials => {
                credentials.unwrap_or("a signed address may have expired: ask for a new one").into()
            }
            Self::NoRanges => "fetch the files, and name their folder".into(),
            Self::NoListing => "name its files: https://host/train-{000000..000099}.tar".into(),
            Self::Region => "set AWS_REGION to the bucket's".into(),
            Self::WithoutStores => "build it with the feature `stores` of ddpm-data, which is on by default".into(),
            Self::Malformed { .. } => "correct it; a variable that is not needed may be unset".into(),
            Self::Hub { help, .. } => help.clone(),
            Self::Other(_) => "check the address, and what the environment says about the store".into(),
        }
    }
}
