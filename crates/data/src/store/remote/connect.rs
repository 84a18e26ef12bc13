//! A client for a store, with what the environment says about it: credentials, region, endpoint.
//!
//! | store | variables |
//! | --- | --- |
//! | `s3://` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_SKIP_SIGNATURE` for public buckets; `~/.aws/credentials`; those of a machine in the cloud |
//! | `gs://` | `GOOGLE_APPLICATION_CREDENTIALS` and gcloud's own file |
//! | `az://` | `AZURE_STORAGE_ACCOUNT_NAME`, with `AZURE_STORAGE_ACCOUNT_KEY` or another of Azure's ways |
//! | `hf://` | `HF_TOKEN`, `HF_ENDPOINT`, ...: those of `ddpm-hub` |

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, HeaderMap, HeaderValue, ObjectStore, RetryConfig};

use crate::error::Refusal;
use crate::store::address::{Address, Scheme};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// A client for all that lies below `address.root`; `bearer` is a secret that goes with each request.
pub(super) fn connect(
    address: &Address,
    silence: Duration,
    bearer: Option<&str>,
) -> Result<Arc<dyn ObjectStore>, Refusal> {
    let name = address.root.split_once("://").map_or("", |(_, name)| name);
    // What is repeated, and for how long, is decided in `fetch`.
    let once = || RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let client = |allow_http: bool| {
        ClientOptions::new()
            .with_user_agent(HeaderValue::from_static(concat!("ddpm/", env!("CARGO_PKG_VERSION"))))
            .with_connect_timeout(CONNECT.min(silence))
            .with_read_timeout(silence)
            .with_timeout_disabled()
            .with_allow_http(allow_http)
    };
    let failed = |error: object_store::Error| Refusal::Other(error.to_string());
    Ok(match address.scheme {
        Scheme::S3 => {
            require_wellformed(name)?;
            let builder = with_credentials(amazon().with_bucket_name(name).with_retry(once()))?;
            // Who writes such an endpoint means it.
            let plain = ENDPOINTS.into_iter().find_map(variable);
            let plain = plain.is_some_and(|endpoint| endpoint.starts_with("http://"));
            Arc::new(builder.with_client_options(client(plain || is_set("AWS_ALLOW_HTTP"))).build().map_err(failed)?)
        }
        Scheme::Google => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(name).with_retry(once());
            Arc::new(builder.with_client_options(client(false)).build().map_err(failed)?)
        }
        Scheme::Azure => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(name).with_retry(once());
            let plain = is_set("AZURE_STORAGE_USE_EMULATOR") || is_set("AZURE_ALLOW_HTTP");
            Arc::new(builder.with_client_options(client(plain)).build().map_err(|error| {
                match variable("AZURE_STORAGE_ACCOUNT_NAME") {
                    None => Refusal::NoCredentials,
                    Some(_) => failed(error),
                }
            })?)
        }
        Scheme::Web | Scheme::Hub => {
            let query = address.query().map_or(String::new(), |query| format!("?{query}"));
            let mut options = client(address.root.starts_with("http://"));
            if let Some(bearer) = bearer {
                let mut headers = HeaderMap::new();
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {bearer}")).map_err(|_| Refusal::NoCredentials)?;
                value.set_sensitive(true);
                headers.insert("authorization", value);
                options = options.with_default_headers(headers);
            }
            let builder = HttpBuilder::new().with_url(format!("{}{query}", address.root)).with_retry(once());
            Arc::new(builder.with_client_options(options).build().map_err(failed)?)
        }
    })
}

/// Adds the keys of the profile where the environment names none.
fn with_credentials(builder: AmazonS3Builder) -> Result<AmazonS3Builder, Refusal> {
    if variable("AWS_ACCESS_KEY_ID").is_some() || is_set("AWS_SKIP_SIGNATURE") {
        return Ok(builder);
    }
    if let Some(found) = profile() {
        let builder = builder.with_access_key_id(found.id).with_secret_access_key(found.secret);
        return Ok(found.token.into_iter().fold(builder, AmazonS3Builder::with_token));
    }
    if is_set("AWS_EC2_METADATA_DISABLED") && !OTHER_WAYS.iter().any(|name| variable(name).is_some()) {
        return Err(Refusal::NoCredentials);
    }
    Ok(builder)
}

/// What `object_store` makes requests of without a look at it.
fn require_wellformed(bucket: &str) -> Result<(), Refusal> {
    let malformed = |what: &str, expected| Err(Refusal::Malformed { what: what.to_owned(), expected });
    if !bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
        return malformed("the bucket's name", "letters, digits, dots and hyphens");
    }
    for name in ENDPOINTS {
        if variable(name).is_some_and(|endpoint| !is_endpoint(&endpoint)) {
            return malformed(name, "http://HOST[:PORT] or https://HOST[:PORT]");
        }
    }
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"] {
        if variable(name).is_some_and(|value| !value.bytes().all(|byte| byte.is_ascii_graphic())) {
            return malformed(name, "one word without spaces or line breaks");
        }
    }
    Ok(())
}

/// Where another store than Amazon's is named.
const ENDPOINTS: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

fn is_endpoint(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().is_ok()),
            _ => (authority, true),
        };
        !host.is_empty() && port && rest.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// How Amazon's containers and clusters are told who they are.
const OTHER_WAYS: [&str; 3] =
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

/// As `from_env` makes it, but a variable that is set to nothing is not set.
fn amazon() -> AmazonS3Builder {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let ours = variables.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
    let known = ours.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)));
    known.fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_set(name: &str) -> bool {
    variable(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// Keys of a profile.
#[derive(Debug, Default, PartialEq, Eq)]
struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

/// The keys of `AWS_PROFILE`, or of the profile `default`, in Amazon's own file, which `object_store` does not read.
fn profile() -> Option<Keys> {
    let file = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let file = file.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws/credentials")))?;
    let name = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    keys(&std::fs::read_to_string(file).ok()?, &name)
}

fn keys(text: &str, profile: &str) -> Option<Keys> {
    let (mut keys, mut inside) = (Keys::default(), false);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let value = value.trim().to_owned();
            match key.trim() {
                "aws_access_key_id" => keys.id = value,
                "aws_secret_access_key" => keys.secret = value,
                "aws_session_token" => keys.token = Some(value),
                _ => {}
            }
        }
    }
    (!keys.id.is_empty() && !keys.secret.is_empty()).then_some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_scheme_and_a_host() {
        for good in [
            "http://127.0.0.1:9000",
            "https://s3.example.com",
            "https://s3.example.com/base",
            "http://[::1]:80",
            "http://[::1]",
        ] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in
            ["nonsense", "127.0.0.1:1", "http://", "http://a b", "ftp://h", "http://h:port", "http://:80", "http://h\n"]
        {
            assert!(!is_endpoint(bad), "{bad}");
        }
        assert!(matches!(require_wellformed("b u"), Err(Refusal::Malformed { .. })));
    }

    #[test]
    fn the_keys_of_a_profile_are_those_below_its_name() {
        let text = "# comment\n[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n[two]\naws_access_key_id=C\n\
            aws_secret_access_key = D=\naws_session_token = E\n[broken]\naws_access_key_id=F\n";
        let of = |id: &str, secret: &str, token: Option<&str>| {
            Some(Keys { id: id.into(), secret: secret.into(), token: token.map(str::to_owned) })
        };
        assert_eq!(keys(text, "default"), of("A", "B", None));
        assert_eq!(keys(text, "two"), of("C", "D=", Some("E")));
        assert_eq!(keys(text, "broken"), None);
        assert_eq!(keys(text, "none"), None);
    }
}
