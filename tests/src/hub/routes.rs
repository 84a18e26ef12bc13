//! The requests, with the answers of huggingface.co as far as `ddpm` looks at them.

// A refusal is an answer like any other.
#![allow(clippy::result_large_err)]

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::store::{File, Repo};
use super::{Fault, Route, Shared, TOKEN, XET_TOKEN, data_sets, xet};

pub(super) type Hub = State<Arc<Shared>>;
type Answer = Result<Response, Response>;
pub(super) type InRepo = Path<(String, String, String)>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/api/repos/create", post(create))
        .route("/api/models/{owner}/{name}", get(newest))
        .route("/api/models/{owner}/{name}/revision/{rev}", get(revision))
        .route("/api/models/{owner}/{name}/tree/{rev}", get(tree))
        .route("/api/models/{owner}/{name}/branch/{rev}", post(branch))
        .route("/api/models/{owner}/{name}/preupload/{rev}", post(preupload))
        .route("/api/models/{owner}/{name}/xet-write-token/{rev}", get(write_token))
        .route("/api/models/{owner}/{name}/commit/{rev}", post(commit))
        .route("/{owner}/{name}/info/lfs/objects/batch", post(batch))
        .route("/{owner}/{name}/resolve/{rev}/{*path}", get(resolve))
        .merge(data_sets::router())
        .fallback(unknown)
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), note))
        .with_state(shared)
}

async fn note(hub: Hub, request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    hub.log.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
    next.run(request).await
}

async fn unknown(method: Method, uri: Uri) -> Response {
    refuse(StatusCode::NOT_IMPLEMENTED, "Unknown", &format!("{method} {uri}"))
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let headers = [("x-error-code", code.to_owned()), ("x-error-message", message.to_owned())];
    (status, headers, json!({"error": message}).to_string()).into_response()
}

fn answer(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

impl Shared {
    /// The fault of a request of this route, if one is due.
    fn fault(&self, route: Route) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(|fault| fault.route == route)?;
        let fault = faults.remove(at);
        let (is_due, left) = fault.count();
        faults.splice(at..at, left);
        is_due.then_some(fault)
    }

    /// A file's bytes.
    pub(super) async fn bytes(&self, file: &File) -> Vec<u8> {
        match file {
            File::Small(bytes) => bytes.to_vec(),
            File::Large(sha256, size) => xet::read(self.large.path(), sha256, *size).await,
        }
    }

    /// Looks something up in a repository that the client may see.
    fn read<T>(&self, name: &str, headers: &HeaderMap, look: impl FnOnce(&Repo) -> T) -> Result<T, Response> {
        let state = self.state.lock().unwrap();
        match state.repos.get(name) {
            Some(repo) if !repo.private || has_token(headers) => Ok(look(repo)),
            _ if !has_token(headers) => {
                Err(refuse(StatusCode::UNAUTHORIZED, "RepoNotFound", "Invalid username or password."))
            }
            _ => Err(refuse(StatusCode::NOT_FOUND, "RepoNotFound", "Repository not found")),
        }
    }
}

fn has_token(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|value| value == &format!("Bearer {TOKEN}"))
}

fn may_write(headers: &HeaderMap) -> Result<(), Response> {
    let refused = || refuse(StatusCode::UNAUTHORIZED, "", "Invalid username or password.");
    if has_token(headers) { Ok(()) } else { Err(refused()) }
}

fn no_revision() -> Response {
    refuse(StatusCode::NOT_FOUND, "RevisionNotFound", "Invalid rev id")
}

/// Serves a request, or applies the test's fault to it.
async fn serve(hub: &Shared, route: Route, work: impl AsyncFnOnce() -> Answer) -> Response {
    let fault = hub.fault(route);
    if let Some(fault) = fault
        && let Some(instead) = fault.before().await
    {
        return instead;
    }
    let answer = work().await.unwrap_or_else(|refusal| refusal);
    match fault {
        Some(fault) => fault.instead_of(answer).await,
        None => answer,
    }
}

async fn create(hub: Hub, headers: HeaderMap, body: Bytes) -> Response {
    serve(&hub, Route::Create, async || {
        may_write(&headers)?;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("type"), "model");
        let name = format!("{}/{}", text("organization"), text("name"));
        let mut state = hub.state.lock().unwrap();
        if state.repos.contains_key(&name) {
            return Err(refuse(StatusCode::CONFLICT, "", "You already created this model repo"));
        }
        state.repos.insert(name.clone(), Repo::new(body["private"] == true));
        Ok(answer(&json!({"url": format!("https://hub/{name}")})))
    })
    .await
}

/// Not asked by `ddpm`, but by Python's client, with which this hub was compared.
async fn newest(hub: Hub, Path((owner, name)): Path<(String, String)>, headers: HeaderMap) -> Response {
    revision(hub, Path((owner, name, "main".to_owned())), headers).await
}

pub(super) async fn revision(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap) -> Response {
    serve(&hub, Route::Revision, async || {
        let id = format!("{owner}/{name}");
        let describe = |repo: &Repo| {
            let commit = repo.head(&rev)?;
            let siblings: Vec<_> = commit.files.keys().map(|path| json!({"rfilename": path})).collect();
            Some(json!({"id": id, "sha": commit.id, "private": repo.private, "siblings": siblings}))
        };
        Ok(answer(&hub.read(&id, &headers, describe)?.ok_or_else(no_revision)?))
    })
    .await
}

/// In pages of two files, as the real one pages long listings.
pub(super) async fn tree(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap, uri: Uri) -> Response {
    serve(&hub, Route::Tree, async || {
        let list =
            |repo: &Repo| Some(repo.head(&rev)?.files.iter().map(|(path, file)| file.entry(path)).collect::<Vec<_>>());
        let entries = hub.read(&format!("{owner}/{name}"), &headers, list)?.ok_or_else(no_revision)?;
        let query = uri.query().unwrap_or_default();
        assert!(query.contains("recursive=true"), "{query}");
        let first: usize = query.split("cursor=").nth(1).map_or(0, |cursor| cursor.parse().unwrap());
        let page: Vec<_> = entries.iter().skip(first).take(2).collect();
        let mut response = answer(&json!(page));
        if first + 2 < entries.len() {
            let host = headers["host"].to_str().unwrap();
            let link = format!("<http://{host}{}?recursive=true&cursor={}>; rel=\"next\"", uri.path(), first + 2);
            response.headers_mut().insert("link", link.parse().unwrap());
        }
        Ok(response)
    })
    .await
}

async fn branch(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap) -> Response {
    let made = || {
        may_write(&headers)?;
        let mut state = hub.state.lock().unwrap();
        let repo = state.repos.get_mut(&format!("{owner}/{name}")).ok_or_else(no_revision)?;
        let head = repo.head("main").cloned().ok_or_else(no_revision)?;
        repo.branches.insert(rev.clone(), vec![head]);
        Ok(StatusCode::CREATED.into_response())
    };
    made().unwrap_or_else(|refusal: Response| refusal)
}

/// As huggingface.co sorts: weights and pictures are large files, texts are not.
fn is_large(path: &str) -> bool {
    [".safetensors", ".png"].iter().any(|end| path.ends_with(end))
}

async fn preupload(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap, body: Bytes) -> Response {
    serve(&hub, Route::Preupload, async || {
        may_write(&headers)?;
        hub.read(&format!("{owner}/{name}"), &headers, |repo| repo.head(&rev).map(drop))?.ok_or_else(no_revision)?;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let files = body["files"].as_array().unwrap().iter().map(|file| {
            let mode = if is_large(file["path"].as_str().unwrap()) { "lfs" } else { "regular" };
            json!({"path": file["path"], "uploadMode": mode, "shouldIgnore": false})
        });
        Ok(answer(&json!({"files": files.collect::<Vec<_>>()})))
    })
    .await
}

async fn batch(hub: Hub, headers: HeaderMap) -> Response {
    serve(&hub, Route::Batch, async || {
        may_write(&headers)?;
        let transfer = if hub.state.lock().unwrap().has_xet { "xet" } else { "basic" };
        Ok(answer(&json!({"transfer": transfer, "objects": []})))
    })
    .await
}

async fn write_token(hub: Hub, headers: HeaderMap) -> Response {
    serve(&hub, Route::Token, async || {
        may_write(&headers)?;
        let storage = hub.state.lock().unwrap().storage.clone();
        let url = storage.unwrap_or_else(|| xet::endpoint(hub.large.path()));
        Ok(answer(&json!({"accessToken": XET_TOKEN, "exp": 4_000_000_000_u64, "casUrl": url})))
    })
    .await
}

async fn commit(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap, body: Bytes) -> Response {
    serve(&hub, Route::Commit, async || {
        may_write(&headers)?;
        let lines: Vec<Value> = body
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let header = lines.iter().find(|line| line["key"] == "header").unwrap()["value"].clone();
        let mut changes = Vec::new();
        for line in &lines {
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_owned();
            match line["key"].as_str().unwrap() {
                "header" => {}
                "deletedFile" => changes.push((path, None)),
                "file" => {
                    let bytes = STANDARD.decode(value["content"].as_str().unwrap()).unwrap();
                    changes.push((path, Some(File::Small(Arc::new(bytes)))));
                }
                "lfsFile" => {
                    let (oid, size) = (value["oid"].as_str().unwrap(), value["size"].as_u64().unwrap());
                    if !xet::has(hub.large.path(), oid) {
                        return Err(refuse(StatusCode::BAD_REQUEST, "", &format!("{path}: not uploaded")));
                    }
                    changes.push((path, Some(File::Large(oid.to_owned(), size))));
                }
                other => panic!("a line of the kind {other}"),
            }
        }
        let mut state = hub.state.lock().unwrap();
        let repo = state.repos.get_mut(&format!("{owner}/{name}")).ok_or_else(no_revision)?;
        let head = repo.head(&rev).ok_or_else(no_revision)?.id.clone();
        if header["parentCommit"].as_str().is_some_and(|parent| parent != head) {
            return Err(refuse(StatusCode::PRECONDITION_FAILED, "", "A commit has happened since."));
        }
        let id = repo.commit(&rev, header["summary"].as_str().unwrap(), changes);
        Ok(answer(&json!({"success": true, "commitOid": id, "commitUrl": format!("https://hub/commit/{id}")})))
    })
    .await
}

pub(super) async fn resolve(
    hub: Hub,
    Path((owner, name, rev, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let fault = hub.fault(Route::Resolve);
    if let Some(fault) = fault
        && let Some(instead) = fault.before().await
    {
        return instead;
    }
    let find = |repo: &Repo| {
        let commit = repo.head(&rev)?;
        Some((commit.id.clone(), commit.files.get(&path)?.clone()))
    };
    match hub.read(&format!("{owner}/{name}"), &headers, find) {
        Ok(Some((commit, file))) => {
            let bytes = hub.bytes(&file).await;
            let bytes = match fault {
                Some(fault) => fault.bytes(bytes),
                None => bytes,
            };
            let etag = format!("\"{}\"", file.etag());
            let about = [("etag", etag.clone()), ("x-linked-etag", etag), ("x-repo-commit", commit)];
            match piece(&headers, bytes.len()) {
                Some((start, end)) => {
                    let place = [("content-range", format!("bytes {start}-{}/{}", end - 1, bytes.len()))];
                    (StatusCode::PARTIAL_CONTENT, about, place, bytes[start..end].to_vec()).into_response()
                }
                None => (about, bytes).into_response(),
            }
        }
        Ok(None) => refuse(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found"),
        Err(refusal) => refusal,
    }
}

/// The bytes that a request asks for, where not all of them.
fn piece(headers: &HeaderMap, len: usize) -> Option<(usize, usize)> {
    let range = headers.get("range")?.to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (start, end) = range.split_once('-').unwrap();
    Some((start.parse().unwrap(), len.min(end.parse::<usize>().unwrap() + 1)))
}
