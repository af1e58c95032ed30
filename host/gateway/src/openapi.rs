//! `GET /openapi.json`: a document written by hand, held to the routes and fields by tests.

use axum::http::header;
use axum::response::IntoResponse;

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::routes;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("JSON")
    }

    #[test]
    fn it_names_the_routes_that_there_are() {
        let routes = routes::guarded().into_iter().chain(routes::admin()).chain(routes::open());
        let routes: BTreeSet<String> =
            routes.map(|(path, _)| path.replace("{*id}", "{id}")).collect();
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        assert_eq!(routes, paths.keys().cloned().collect());
    }

    #[test]
    fn guarded_routes_ask_for_the_key() {
        for (path, _) in routes::guarded().into_iter().chain(routes::admin()) {
            let path = path.replace("{*id}", "{id}");
            let document = document();
            let methods = document["paths"][&path].as_object().expect("methods");
            assert!(methods.values().all(|method| method["security"].is_array()), "{path}");
        }
    }

    #[test]
    fn it_is_of_this_version() {
        assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
