//! Settings of the hub from the environment, under huggingface_hub's own names.
//!
//! | variable | what |
//! | --- | --- |
//! | `HF_ENDPOINT` | another hub than huggingface.co |
//! | `HF_TOKEN`, or a file: `HF_TOKEN_PATH`, `HF_HOME/token` | who is asking |
//! | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub` | where downloads are kept, as huggingface_hub keeps them |
//! | `HF_HUB_OFFLINE=1` | touch no network |
//! | `DDPM_HUB_TIMEOUT` | seconds of silence after which a request is given up; default 60 |

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::HubError;
use crate::name::RepoName;

/// The hub that is used by default.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

const TIMEOUT: &str = "DDPM_HUB_TIMEOUT";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A token, and where it was found. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    /// The variable or the file.
    pub place: String,
}

impl Token {
    /// For a request's header.
    #[cfg(feature = "net")]
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.place)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Who is asking.
    pub token: Option<Token>,
    /// The file of a token that cannot be read, and why.
    pub unreadable: Option<String>,
    /// Where downloads are kept.
    pub cache: PathBuf,
    /// Whether the network may not be used.
    pub offline: bool,
    /// The longest silence of the hub.
    pub timeout: Duration,
}

impl Settings {
    /// Of this process.
    ///
    /// # Errors
    /// An impossible value.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::read(&|name| std::env::var_os(name))
    }

    /// Refuses a push that the hub would refuse: writing needs a token.
    pub fn may_push(&self, repo: &RepoName) -> Result<(), HubError> {
        match self.token {
            Some(_) => Ok(()),
            None => Err(HubError::NoToken { doing: format!("pushing to {repo}"), unreadable: self.unreadable.clone() }),
        }
    }

    /// Where programs of this user keep files that they can make again.
    pub fn user_cache() -> PathBuf {
        user_cache(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.to_string_lossy().trim().is_empty());
        let text = |name: &str| set(name).map(|value| in_unicode(name, value)).transpose();
        let hf_home = set("HF_HOME").map_or_else(|| user_cache(&set).join("huggingface"), PathBuf::from);
        let cache = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(set);
        let (token, unreadable) = token(&set, &hf_home)?;
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT")?)?,
            token,
            unreadable,
            cache: cache.map_or_else(|| hf_home.join("hub"), PathBuf::from),
            offline: text("HF_HUB_OFFLINE")?.is_some_and(|value| is_true(&value)),
            timeout: timeout(text(TIMEOUT)?)?,
        })
    }
}

/// Switches off the telemetry of the upload library, unless the user has set its switch.
///
/// # Safety
/// No other thread may run yet: the library reads this from the environment, and has no other switch.
pub unsafe fn disable_telemetry() {
    const SWITCH: &str = "HF_HUB_DISABLE_TELEMETRY";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: the caller has promised that no other thread runs, so none reads the environment meanwhile.
        unsafe { std::env::set_var(SWITCH, "1") };
    }
}

fn setting(message: String, help: &'static str) -> HubError {
    HubError::Setting { message, help }
}

/// Paths may hold any bytes; everything else is text. The value may be a token, so it is not shown.
fn in_unicode(name: &str, value: OsString) -> Result<String, HubError> {
    let refuse = |_| setting(format!("{name} is not UTF-8, expected text"), "set it again, or leave it out");
    value.into_string().map_err(refuse)
}

fn user_cache(set: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let home = || PathBuf::from(set("HOME").unwrap_or_else(|| ".".into()));
    set("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from)
}

/// The words that huggingface_hub takes for yes.
fn is_true(value: &str) -> bool {
    matches!(value.trim().to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

fn endpoint(value: Option<String>) -> Result<String, HubError> {
    let endpoint = value.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let endpoint = endpoint.trim().trim_end_matches('/');
    let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let refuse = |message| Err(setting(message, "leave it out for huggingface.co"));
    let authority = host.map(|host| host.split(['/', '?', '#']).next().unwrap_or_default());
    match authority {
        // A name and a password would be sent in the token's place, and shown wherever the address is.
        Some(authority) if authority.contains('@') => refuse(
            "HF_ENDPOINT holds a user name or a password: expected https://HOST; the token belongs in HF_TOKEN"
                .to_owned(),
        ),
        Some(authority) if is_authority(authority) => Ok(endpoint.to_owned()),
        _ => refuse(format!("HF_ENDPOINT = {endpoint}: expected https://HOST or https://HOST:PORT")),
    }
}

/// Whether it names a host, and perhaps a port that can be.
fn is_authority(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    !host.is_empty() && !host.contains(char::is_whitespace) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// The token, and the file that might have held one if it could be read.
fn token(set: &dyn Fn(&str) -> Option<OsString>, hf_home: &Path) -> Result<(Option<Token>, Option<String>), HubError> {
    // The second name is the older one.
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    let variable = named.into_iter().find_map(|name| Some((name, set(name)?)));
    let text = |(name, value): (&str, _)| in_unicode(name, value).map(|text| (text, name.to_owned()));
    let variable = variable.map(text).transpose()?;
    let files = set("HF_TOKEN_PATH").map(PathBuf::from).into_iter().chain([hf_home.join("token")]);
    let mut unreadable = None;
    let found = variable.or_else(|| {
        files.into_iter().find_map(|path| match fs::read_to_string(&path) {
            Ok(text) => Some((text, path.display().to_string())),
            Err(error) => {
                let there = error.kind() != ErrorKind::NotFound;
                unreadable = unreadable.take().or(there.then(|| format!("{}: {error}", path.display())));
                None
            }
        })
    });
    let Some((secret, place)) = found else { return Ok((None, unreadable)) };
    let secret = secret.trim().to_owned();
    if secret.is_empty() {
        return Ok((None, unreadable));
    }
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("the token in {place} holds spaces or other letters that no token has, expected hf_...");
        return Err(setting(message, "copy it again from the hub's settings"));
    }
    Ok((Some(Token { secret, place }), unreadable))
}

fn timeout(value: Option<String>) -> Result<Duration, HubError> {
    let Some(value) = value else { return Ok(DEFAULT_TIMEOUT) };
    let seconds = value.trim().parse().ok().filter(|seconds: &f64| (0.05..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| setting(format!("{TIMEOUT} = {value}: expected seconds, 0.05 to 86400"), "60 is the default"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        read_bytes(&variables.iter().map(|(name, value)| (*name, value.as_bytes())).collect::<Vec<_>>())
    }

    fn read_bytes(variables: &[(&str, &[u8])]) -> Result<Settings, HubError> {
        let found = |name: &str| variables.iter().find(|(key, _)| *key == name);
        Settings::read(&|name| found(name).map(|(_, value)| OsString::from_vec(value.to_vec())))
    }

    #[test]
    fn places_follow_huggingface_hub() {
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/c")]), "/c");
        let plain = read(&[("HOME", "/h")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.offline, plain.timeout.as_secs()), (DEFAULT_ENDPOINT, false, 60));
        assert!(read(&[("HF_HUB_OFFLINE", "true")]).unwrap().offline);
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }

    #[test]
    fn a_token_is_found_in_the_environment_before_a_file_and_never_shown() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        let token = |variables: &[(&str, &str)]| read(variables).unwrap().token;
        let of_file = token(&[("HF_HOME", home)]).unwrap();
        assert_eq!((of_file.secret.as_str(), of_file.place), ("hf_file", format!("{home}/token")));
        let named = token(&[("HF_HOME", home), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert_eq!(format!("{named:?}"), "Token(from HF_TOKEN)");
        assert_eq!(token(&[("HF_HOME", "/does/not/exist"), ("HF_TOKEN", " ")]), None);
    }

    #[test]
    fn a_token_that_cannot_be_read_is_reported_where_one_is_missing() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("token")).unwrap();
        let settings = read(&[("HF_HOME", home.path().to_str().unwrap())]).unwrap();
        assert_eq!(settings.token, None);
        assert!(settings.unreadable.as_ref().unwrap().contains("/token: "), "{settings:?}");
        assert_eq!(read(&[("HF_HOME", "/does/not/exist")]).unwrap().unreadable, None);
    }

    #[test]
    fn a_path_may_hold_any_bytes_and_a_text_that_is_none_is_refused() {
        let bytes = b"/home/\xFF";
        let settings = read_bytes(&[("HF_HUB_CACHE", bytes)]).unwrap();
        assert_eq!(settings.cache, PathBuf::from(OsString::from_vec(bytes.to_vec())));
        for name in ["HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "DDPM_HUB_TIMEOUT"] {
            let error = read_bytes(&[("HOME", b"/h"), (name, b"hf_\xFF")]).unwrap_err().to_string();
            assert_eq!(error, format!("{name} is not UTF-8, expected text"));
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "https://"),
            ("HF_ENDPOINT", "http://127.0.0.1:99999"),
            ("HF_ENDPOINT", "https://me:secret@huggingface.co"),
            ("DDPM_HUB_TIMEOUT", "soon"),
            ("DDPM_HUB_TIMEOUT", "0"),
            ("HF_TOKEN", "two words"),
        ] {
            let error = read(&[("HOME", "/h"), (name, value)]).unwrap_err();
            assert_eq!(error.kind(), ddpm_run::Kind::Setting);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("expected"), "{text}");
            assert!(name != "HF_TOKEN" || !format!("{text}{}", error.help()).contains(value), "{text}");
        }
    }
}
