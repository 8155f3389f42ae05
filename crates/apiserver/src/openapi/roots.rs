//! The paths beside those of group versions: discovery of versions and groups, the server's version, token
//! keys.

use std::collections::{BTreeMap, BTreeSet};

use coracle_resources::def::ResourceDef;

use super::operations::{Operation, PathItem, camel, tag};
use super::schemas::META;

/// Keys of the paths that are always there.
const ALWAYS: [&str; 5] = ["api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"];

/// The keys of all these documents, as the index of v3 lists them.
pub(super) fn keys(defs: &[&ResourceDef]) -> BTreeSet<String> {
    let groups = defs.iter().filter(|def| !def.group.is_empty()).map(|def| format!("apis/{}", def.group));
    ALWAYS.iter().map(|key| (*key).to_owned()).chain(groups).collect()
}

/// The one path of a document; `None` when there is none of that key.
pub(super) fn paths(defs: &[&ResourceDef], key: &str) -> Option<BTreeMap<String, PathItem>> {
    if !keys(defs).contains(key) {
        return None;
    }
    let info = "io.k8s.apimachinery.pkg.version.Info".to_owned();
    let (id, tag, description, answer) = match key {
        "api" => {
            let what = "get available API versions";
            ("getCoreAPIVersions".to_owned(), "core".to_owned(), what, Some(format!("{META}APIVersions")))
        }
        "apis" => {
            let what = "get available API versions";
            ("getAPIVersions".to_owned(), "apis".to_owned(), what, Some(format!("{META}APIGroupList")))
        }
        "version" => ("getCodeVersion".into(), "version".into(), "get the version information", Some(info)),
        "openid/v1/jwks" => {
            let what = "get the keys that verify service account tokens";
            ("getServiceAccountIssuerOpenIDKeyset".to_owned(), "openid".to_owned(), what, None)
        }
        ".well-known/openid-configuration" => {
            let what = "get the OpenID configuration of the issuer of service account tokens";
            ("getServiceAccountIssuerOpenIDConfiguration".to_owned(), "WellKnown".to_owned(), what, None)
        }
        group => {
            let group = group.strip_prefix("apis/")?;
            let answer = Some(format!("{META}APIGroup"));
            let tag = tag(group, "").trim_end_matches('_').to_owned();
            (format!("get{}APIGroup", camel(group, "")), tag, "get information of a group", answer)
        }
    };
    let operation = Operation {
        method: "get",
        action: None,
        id,
        description: description.to_owned(),
        tag,
        gvk: None,
        params: Vec::new(),
        body: None,
        answer,
        codes: &["200", "401"],
        custom: false,
    };
    let item = PathItem { params: Vec::new(), operations: vec![operation] };
    Some(BTreeMap::from([(format!("/{key}/"), item)]))
}
