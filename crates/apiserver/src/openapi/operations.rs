//! The operations of every path, independent of the document's version.

use std::collections::BTreeMap;

use coracle_meta::GroupVersionKind;
use coracle_resources::def::{ResourceDef, Scope, Storage, Subresource};

use super::params::{self, Param};
use super::schemas::{self, META, type_name};

/// One operation of a path.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) action: Option<&'static str>,
    pub(super) id: String,
    pub(super) description: String,
    pub(super) tag: String,
    pub(super) gvk: Option<GroupVersionKind>,
    pub(super) params: Vec<Param>,
    /// Definition of the body, and whether it must be there.
    pub(super) body: Option<(String, bool)>,
    /// Definition of the answer; `None` means text.
    pub(super) answer: Option<String>,
    pub(super) codes: &'static [&'static str],
    /// Of a custom resource: no protobuf, no strategic merge.
    pub(super) custom: bool,
}

/// A path with what all its operations share.
#[derive(Clone, Debug, Default)]
pub(super) struct PathItem {
    pub(super) params: Vec<Param>,
    pub(super) operations: Vec<Operation>,
}

pub(super) const OK: &[&str] = &["200", "401"];
pub(super) const CREATED: &[&str] = &["200", "201", "202", "401"];
pub(super) const WRITTEN: &[&str] = &["200", "201", "401"];
pub(super) const DELETED: &[&str] = &["200", "202", "401"];

/// All paths of a group version.
pub(super) fn of_group_version(
    defs: &[&ResourceDef],
    group: &str,
    version: &str,
) -> BTreeMap<String, PathItem> {
    let mut paths = BTreeMap::new();
    let prefix =
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let builder = Builder { prefix, tag: tag(group, version), camel: camel(group, version) };
    paths.insert(format!("{}/", builder.prefix), builder.discovery());
    for def in defs.iter().filter(|def| (def.group, def.version) == (group, version)) {
        builder.resource(def, &mut paths);
    }
    paths.values_mut().for_each(share_params);
    paths
}

/// Parameters that all operations of a path have belong to the path.
pub(super) fn share_params(item: &mut PathItem) {
    let Some((first, others)) = item.operations.split_first_mut() else { return };
    let has = |operation: &Operation, name: &str| operation.params.iter().any(|param| param.name == name);
    let common: Vec<Param> =
        first.params.iter().filter(|param| others.iter().all(|op| has(op, param.name))).copied().collect();
    for operation in &mut item.operations {
        operation.params.retain(|param| !common.iter().any(|shared| shared.name == param.name));
    }
    item.params.extend(common);
}

/// `apps_v1`, `rbacAuthorization_v1`, `core_v1`.
pub(super) fn tag(group: &str, version: &str) -> String {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    if short.is_empty() { format!("core_{version}") } else { format!("{}_{version}", lower_camel(short)) }
}

fn lower_camel(dotted: &str) -> String {
    let mut parts = dotted.split('.');
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |out, part| out + &capitalize(part))
}

pub(super) fn camel(group: &str, version: &str) -> String {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let group = if short.is_empty() { "core".to_owned() } else { lower_camel(short) };
    capitalize(&group) + &capitalize(version)
}

fn capitalize(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

struct Builder {
    prefix: String,
    tag: String,
    camel: String,
}

impl Builder {
    fn discovery(&self) -> PathItem {
        let operation = Operation {
            method: "get",
            action: None,
            id: format!("get{}APIResources", self.camel),
            description: "get available resources".to_owned(),
            tag: self.tag.clone(),
            gvk: None,
            params: Vec::new(),
            body: None,
            answer: Some(format!("{META}APIResourceList")),
            codes: OK,
            custom: false,
        };
        PathItem { params: Vec::new(), operations: vec![operation] }
    }

    fn operation(&self, def: &ResourceDef, verb: Verb, what: &str) -> Operation {
        let (method, action, params, codes) = match verb {
            Verb::List => ("get", "list", params::LIST, OK),
            Verb::Get => ("get", "get", &[] as &[Param], OK),
            Verb::Create => ("post", "post", params::WRITE, CREATED),
            Verb::Replace => ("put", "put", params::WRITE, WRITTEN),
            Verb::Patch => ("patch", "patch", params::PATCH, WRITTEN),
            Verb::Delete => ("delete", "delete", params::DELETE, DELETED),
            Verb::DeleteCollection => ("delete", "deletecollection", params::DELETE_COLLECTION, OK),
            Verb::Watch => ("get", "watch", params::LIST, OK),
            Verb::WatchList => ("get", "watchlist", params::LIST, OK),
        };
        let own = type_name(def);
        let (prefix, text) = verb.words();
        let answer = match verb {
            Verb::List => schemas::list_name(def),
            Verb::Delete | Verb::DeleteCollection => format!("{META}Status"),
            Verb::Watch | Verb::WatchList => format!("{META}WatchEvent"),
            _ => own.clone(),
        };
        let body = match verb {
            Verb::Create | Verb::Replace => Some((own, true)),
            Verb::Patch => Some((format!("{META}Patch"), true)),
            Verb::Delete | Verb::DeleteCollection => Some((format!("{META}DeleteOptions"), false)),
            Verb::List | Verb::Get | Verb::Watch | Verb::WatchList => None,
        };
        let collection = if verb == Verb::DeleteCollection { "Collection" } else { "" };
        Operation {
            method,
            action: Some(action),
            id: format!("{prefix}{}{collection}{what}", self.camel),
            description: format!("{text} {}", def.kind),
            tag: self.tag.clone(),
            gvk: Some(GroupVersionKind::new(def.group, def.version, def.kind)),
            params: params.to_vec(),
            body,
            answer: Some(answer),
            codes,
            custom: false,
        }
    }

    fn resource(&self, def: &ResourceDef, paths: &mut BTreeMap<String, PathItem>) {
        let namespaced = def.scope == Scope::Namespaced;
        let word = if namespaced { "Namespaced" } else { "" };
        let what = format!("{word}{}", def.kind);
        let scope = if namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{}{scope}/{}", self.prefix, def.plural);
        let shared = |extra: &[Param]| {
            let own: &[Param] = if namespaced { &[params::NAMESPACE] } else { &[] };
            [extra, own, &[params::PRETTY]].concat()
        };
        let verbs = |verbs: &[Verb]| verbs.iter().map(|v| self.operation(def, *v, &what)).collect::<Vec<_>>();
        if def.storage == Storage::Virtual {
            let item = PathItem { params: shared(&[]), operations: verbs(&[Verb::Create]) };
            paths.insert(collection, item);
            return;
        }
        if def.storage == Storage::Computed {
            let item = PathItem { params: shared(&[]), operations: verbs(&[Verb::List]) };
            paths.insert(collection.clone(), item);
            let item = PathItem { params: shared(&[params::NAME]), operations: verbs(&[Verb::Get]) };
            paths.insert(format!("{collection}/{{name}}"), item);
            return;
        }
        if namespaced {
            let everywhere = format!("{}ForAllNamespaces", def.kind);
            let list = self.operation(def, Verb::List, &everywhere);
            let item = PathItem { params: vec![params::PRETTY], operations: vec![list] };
            paths.insert(format!("{}/{}", self.prefix, def.plural), item);
        }
        // Namespaces go one by one.
        let all: &[Verb] = if def.kind == "Namespace" {
            &[Verb::List, Verb::Create]
        } else {
            &[Verb::List, Verb::Create, Verb::DeleteCollection]
        };
        let item = PathItem { params: shared(&[]), operations: verbs(all) };
        paths.insert(collection.clone(), item);
        self.watches(def, paths);
        let one = format!("{collection}/{{name}}");
        let item = PathItem {
            params: shared(&[params::NAME]),
            operations: verbs(&[Verb::Get, Verb::Replace, Verb::Patch, Verb::Delete]),
        };
        paths.insert(one.clone(), item);
        for subresource in def.subresources {
            let operations = self.subresource(def, *subresource, word);
            let item = PathItem { params: shared(&[params::NAME]), operations };
            if *subresource == Subresource::Proxy {
                let mut deep = item.clone();
                deep.params.insert(1, params::REST);
                deep.operations.iter_mut().for_each(|operation| operation.id.push_str("WithPath"));
                paths.insert(format!("{one}/proxy/{{path}}"), deep);
            }
            paths.insert(format!("{one}/{}", subresource.path()), item);
        }
    }

    /// The deprecated paths that watch.
    fn watches(&self, def: &ResourceDef, paths: &mut BTreeMap<String, PathItem>) {
        let (kind, plural) = (def.kind, def.plural);
        let namespaced = def.scope == Scope::Namespaced;
        let mut add = |path: String, verb: Verb, what: &str, own: &[Param]| {
            let params = [own, &[params::PRETTY]].concat();
            let operations = vec![self.operation(def, verb, what)];
            paths.insert(format!("{}/watch/{path}", self.prefix), PathItem { params, operations });
        };
        if namespaced {
            let below = format!("namespaces/{{namespace}}/{plural}");
            add(plural.to_owned(), Verb::WatchList, &format!("{kind}ListForAllNamespaces"), &[]);
            add(below.clone(), Verb::WatchList, &format!("Namespaced{kind}List"), &[params::NAMESPACE]);
            let own = [params::NAME, params::NAMESPACE];
            add(format!("{below}/{{name}}"), Verb::Watch, &format!("Namespaced{kind}"), &own);
        } else {
            add(plural.to_owned(), Verb::WatchList, &format!("{kind}List"), &[]);
            add(format!("{plural}/{{name}}"), Verb::Watch, kind, &[params::NAME]);
        }
    }

    fn subresource(&self, def: &ResourceDef, subresource: Subresource, word: &str) -> Vec<Operation> {
        let title = match subresource {
            Subresource::PortForward => "Portforward".to_owned(),
            Subresource::EphemeralContainers => "Ephemeralcontainers".to_owned(),
            other => capitalize(other.path()),
        };
        let what = format!("{word}{}{title}", def.kind);
        let of = |verbs: &[Verb], other: Option<(&str, &str, &str)>| -> Vec<Operation> {
            verbs
                .iter()
                .map(|verb| {
                    let mut operation = self.operation(def, *verb, &what);
                    operation.description = operation.description.replacen(
                        def.kind,
                        &format!("{} of the specified {}", subresource.path(), def.kind),
                        1,
                    );
                    if let Some((group, version, kind)) = other {
                        let name = schemas::definition_name(group, version, kind);
                        operation.gvk = Some(GroupVersionKind::new(group, version, kind));
                        operation.answer = Some(name.clone());
                        if *verb != Verb::Patch && operation.body.is_some() {
                            operation.body = Some((name, true));
                        }
                    }
                    operation
                })
                .collect()
        };
        const CHANGE: &[Verb] = &[Verb::Get, Verb::Replace, Verb::Patch];
        match subresource {
            Subresource::Status
            | Subresource::EphemeralContainers
            | Subresource::Resize
            | Subresource::Approval => of(CHANGE, None),
            Subresource::Scale => of(CHANGE, Some(("autoscaling", "v1", "Scale"))),
            Subresource::Binding => of(&[Verb::Create], Some(("", "v1", "Binding"))),
            Subresource::Eviction => of(&[Verb::Create], Some(("policy", "v1", "Eviction"))),
            Subresource::Token => of(&[Verb::Create], Some(("authentication.k8s.io", "v1", "TokenRequest"))),
            Subresource::Finalize => of(&[Verb::Replace], None),
            Subresource::Log => {
                let mut read = of(&[Verb::Get], None);
                for operation in &mut read {
                    operation.params = params::LOG.to_vec();
                    operation.answer = None;
                }
                read
            }
            Subresource::Exec => self.connect(def, &what, &["get", "post"], params::EXEC, "PodExecOptions"),
            Subresource::Attach => {
                self.connect(def, &what, &["get", "post"], params::ATTACH, "PodAttachOptions")
            }
            Subresource::PortForward => {
                self.connect(def, &what, &["get", "post"], params::PORT_FORWARD, "PodPortForwardOptions")
            }
            Subresource::Proxy => {
                let methods = ["get", "put", "post", "delete", "options", "head", "patch"];
                self.connect(def, &what, &methods, &[params::PATH], &format!("{}ProxyOptions", def.kind))
            }
        }
    }

    fn connect(
        &self,
        def: &ResourceDef,
        what: &str,
        methods: &[&'static str],
        params: &[Param],
        kind: &str,
    ) -> Vec<Operation> {
        let one = |method: &&'static str| Operation {
            method,
            action: Some("connect"),
            id: format!("connect{}{}{what}", self.camel, capitalize(method)),
            description: format!("connect {} requests to {}", method.to_ascii_uppercase(), def.kind),
            tag: self.tag.clone(),
            gvk: Some(GroupVersionKind::new("", "v1", kind)),
            params: params.to_vec(),
            body: None,
            answer: None,
            codes: OK,
            custom: false,
        };
        methods.iter().map(one).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    List,
    Get,
    Create,
    Replace,
    Patch,
    Delete,
    DeleteCollection,
    Watch,
    WatchList,
}

impl Verb {
    /// First word of the operation id, and of the description.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::List => ("list", "list or watch objects of kind"),
            Self::Get => ("read", "read the specified"),
            Self::Create => ("create", "create"),
            Self::Replace => ("replace", "replace the specified"),
            Self::Patch => ("patch", "partially update the specified"),
            Self::Delete => ("delete", "delete"),
            Self::DeleteCollection => ("delete", "delete collection of"),
            Self::Watch => ("watch", "watch changes to an object of kind"),
            Self::WatchList => ("watch", "watch individual changes to a list of"),
        }
    }
}
