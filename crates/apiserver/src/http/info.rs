//! What a request is about, read off its path and method as upstream's RequestInfo.

use http::Method;

use super::query::Query;

/// A parsed request line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Info<'a> {
    /// Whether the path names a resource (else only `path` counts).
    pub(crate) is_resource: bool,
    /// `get`, `list`, `watch`, `create` …; for non-resource requests the lower-case method.
    pub(crate) verb: String,
    /// API group; empty for core.
    pub(crate) group: &'a str,
    /// Version.
    pub(crate) version: &'a str,
    /// Namespace, or empty.
    pub(crate) namespace: &'a str,
    /// Plural.
    pub(crate) resource: &'a str,
    /// Subresource, or empty.
    pub(crate) subresource: &'a str,
    /// Name, or empty.
    pub(crate) name: &'a str,
    /// Path below the subresource (proxy).
    pub(crate) rest: &'a str,
    /// `/api/v1/watch/…`: the deprecated form.
    pub(crate) watch_path: bool,
    /// The path came with `namespaces/<name>/` in front of the resource.
    pub(crate) namespaced_path: bool,
    /// More path segments than a resource request can have.
    pub(crate) overlong: bool,
}

impl<'a> Info<'a> {
    /// Parses a path.
    pub(crate) fn new(method: &Method, path: &'a str, query: &Query<'_>) -> Self {
        let mut info = Self { verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        let Some((group, version, rest)) = split_api(path) else { return info };
        (info.group, info.version) = (group, version);
        info.parse_resource(rest);
        if info.is_resource {
            info.set_verb(method, query);
        }
        info
    }

    fn parse_resource(&mut self, mut rest: &'a str) {
        if let Some(below) = rest.strip_prefix("watch/") {
            self.watch_path = true;
            rest = below;
        }
        if rest.is_empty() {
            return;
        }
        self.is_resource = true;
        let (first, after) = cut(rest);
        if first == "namespaces" {
            let (name, below) = cut(after);
            self.namespace = name;
            if below.is_empty() || matches!(cut(below).0, "status" | "finalize") {
                self.resource = "namespaces";
                self.name = name;
                let (subresource, rest) = cut(below);
                (self.subresource, self.rest) = (subresource, rest);
                self.overlong = !rest.is_empty();
                return;
            }
            self.namespaced_path = true;
            let (resource, below) = cut(below);
            self.resource = resource;
            self.parse_name(below);
            return;
        }
        self.resource = first;
        self.parse_name(after);
    }

    fn parse_name(&mut self, rest: &'a str) {
        let (name, below) = cut(rest);
        let (subresource, rest) = cut(below);
        (self.name, self.subresource, self.rest) = (name, subresource, rest);
        self.overlong = !rest.is_empty();
    }

    fn set_verb(&mut self, method: &Method, query: &Query<'_>) {
        let collection = self.name.is_empty();
        let verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD if self.watch_path => "watch",
            Method::GET | Method::HEAD if collection || self.subresource.is_empty() => {
                let watch = query.flag("watch");
                match (collection, watch) {
                    (true, true) => "watch",
                    (true, false) => "list",
                    (false, _) => "get",
                }
            }
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            // Upstream knows no verb for the other methods.
            _ => "",
        };
        verb.clone_into(&mut self.verb);
    }
}

/// Group, version and the rest of an API path.
fn split_api(path: &str) -> Option<(&str, &str, &str)> {
    if let Some(below) = path.strip_prefix("/api/") {
        let (version, rest) = cut(below);
        return (!version.is_empty()).then_some(("", version, rest));
    }
    let (group, below) = cut(path.strip_prefix("/apis/")?);
    let (version, rest) = cut(below);
    (!version.is_empty()).then_some((group, version, rest))
}

/// The first segment and what is behind its slash.
fn cut(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, target: &str, want: (&str, &str, &str, &str, &str)) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = Query::new(query);
        let info = Info::new(&method, path, &query);
        let got = (info.verb.as_str(), info.namespace, info.resource, info.name, info.subresource);
        assert_eq!(got, want);
    }

    #[test]
    fn path_and_method_tell_verb_and_object() {
        check(Method::GET, "/api/v1/pods", ("list", "", "pods", "", ""));
        check(Method::GET, "/api/v1/pods?watch=1", ("watch", "", "pods", "", ""));
        check(Method::GET, "/api/v1/namespaces/a/pods/p/log", ("get", "a", "pods", "p", "log"));
        check(Method::PUT, "/api/v1/namespaces/a/finalize", ("update", "a", "namespaces", "a", "finalize"));
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            ("deletecollection", "a", "deployments", "", ""),
        );
        check(Method::GET, "/version", ("get", "", "", "", ""));
    }
}
