//! Data sets: the same answers at other addresses. In the state they are repositories called `datasets/owner/name`.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::get;

use super::Shared;
use super::routes::{self, Hub, InRepo};

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/datasets/{owner}/{name}/revision/{rev}", get(revision))
        .route("/api/datasets/{owner}/{name}/tree/{rev}", get(tree))
        .route("/datasets/{owner}/{name}/resolve/{rev}/{*path}", get(resolve))
}

async fn revision(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap) -> Response {
    routes::revision(hub, Path((format!("datasets/{owner}"), name, rev)), headers).await
}

async fn tree(hub: Hub, Path((owner, name, rev)): InRepo, headers: HeaderMap, uri: Uri) -> Response {
    routes::tree(hub, Path((format!("datasets/{owner}"), name, rev)), headers, uri).await
}

async fn resolve(
    hub: Hub,
    Path((owner, name, rev, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    routes::resolve(hub, Path((format!("datasets/{owner}"), name, rev, path)), headers).await
}
