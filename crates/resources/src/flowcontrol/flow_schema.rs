//! FlowSchema: which requests belong to which priority level.

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, FlowSchemaSpec, FlowSchemaStatus, NonResourcePolicyRule, PolicyRulesWithSubjects,
    ResourcePolicyRule, Subject,
};
use serde_json::{Value, json};

use super::condition_types;
use crate::check::{each, go_struct, named};
use crate::common::{column, keep_metadata, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "PriorityLevel",
        "string",
        "",
        "`name` is the name of the priority level configuration being referenced Required.",
    ),
    column(
        "MatchingPrecedence",
        "string",
        "",
        "`matchingPrecedence` is used to choose among the FlowSchemas that match a given request. The \
         chosen FlowSchema is among those with the numerically lowest (which we take to be logically \
         highest) MatchingPrecedence.  Each MatchingPrecedence value must be ranged in [1,10000]. \
         Note that if the precedence is not specified, it will be set to 1000 as default.",
    ),
    column(
        "DistinguisherMethod",
        "string",
        "",
        "`distinguisherMethod` defines how to compute the flow distinguisher for requests that match \
         this schema. `nil` specifies that the distinguisher is disabled and thus will always be the \
         empty string.",
    ),
    AGE,
    column("MissingPL", "string", "", "references a broken or non-existent PriorityLevelConfiguration"),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::New,
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<FlowSchema>("flowschema", &Typed::<FlowSchema, _>::new(FlowSchemas))
};

struct FlowSchemas;

const MAX_PRECEDENCE: i32 = 10_000;
const DEFAULT_PRECEDENCE: i32 = 1000;
const EXEMPT: &str = "exempt";
/// Schemas whose spec is fixed.
const MANDATORY: &[&str] = &[EXEMPT, "catch-all"];
const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

impl Strategy<FlowSchema> for FlowSchemas {
    fn default(&self, obj: &mut FlowSchema) {
        let precedence = &mut obj.spec.get_or_insert_default().matching_precedence;
        if precedence.unwrap_or(0) == 0 {
            *precedence = Some(DEFAULT_PRECEDENCE);
        }
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut FlowSchema) {
        obj.status = Some(FlowSchemaStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut FlowSchema, old: &FlowSchema) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut FlowSchema, old: &FlowSchema) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
        new.metadata.generate_name.clone_from(&old.metadata.generate_name);
    }

    fn validate(&self, obj: &FlowSchema, errs: &mut ErrorList) {
        let Some(spec) = &obj.spec else { return };
        let name = text(obj.metadata.name.as_ref());
        check(name, spec, errs);
        if MANDATORY.contains(&name) && fixed(name).is_none_or(|fixed| shown(&fixed) != shown(spec)) {
            errs.push(Error {
                kind: ErrorKind::Invalid,
                path: "spec".to_owned(),
                value: Some(shown(spec)),
                detail: format!("spec of '{name}' must equal the fixed value"),
            });
        }
        self.validate_status_update(obj, obj, errs);
    }

    fn validate_status_update(&self, new: &FlowSchema, _: &FlowSchema, errs: &mut ErrorList) {
        let conditions = new.status.iter().flat_map(|s| s.conditions.iter().flatten());
        condition_types(conditions.map(|c| text(c.type_.as_ref())), errs);
    }

    fn row(&self, obj: &FlowSchema, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        let method = spec.and_then(|s| s.distinguisher_method.as_ref()).map_or("<none>", |m| &m.type_);
        let mut conditions = obj.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let dangling = conditions.find(|c| text(c.type_.as_ref()) == "Dangling");
        vec![
            obj.metadata.name.clone().into(),
            spec.map_or("", |s| s.priority_level_configuration.name.as_str()).into(),
            spec.and_then(|s| s.matching_precedence).unwrap_or(0).into(),
            method.into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            dangling.map_or("?", |c| text(c.status.as_ref())).into(),
        ]
    }
}

/// The spec that a mandatory schema must have.
fn fixed(name: &str) -> Option<FlowSchemaSpec> {
    let objects = super::bootstrap();
    let found = objects.into_iter().find(|o| o["kind"] == "FlowSchema" && o["metadata"]["name"] == name);
    serde_json::from_value(found?["spec"].take()).ok()
}

fn check(name: &str, spec: &FlowSchemaSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let (precedence, at) = (spec.matching_precedence.unwrap_or(0), path.child("matchingPrecedence"));
    if precedence <= 0 {
        errs.invalid(&at, precedence, "must be a positive value");
    }
    if precedence > MAX_PRECEDENCE {
        errs.invalid(&at, precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if precedence == 1 && name != EXEMPT {
        errs.invalid(&at, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if let Some(method) = &spec.distinguisher_method
        && !["ByNamespace", "ByUser"].contains(&method.type_.as_str())
    {
        let at = path.child("distinguisherMethod").child("type");
        errs.not_supported(at, json!({ "Type": method.type_ }), &["ByNamespace", "ByUser"]);
    }
    let at = path.child("priorityLevelConfiguration").child("name");
    match spec.priority_level_configuration.name.as_str() {
        "" => errs.required(at, "must reference a priority level"),
        level => named(errs, &at, level, names::dns1123_subdomain),
    }
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        rules(rule, &path.child("rules").index(i), errs);
    }
}

fn rules(rule: &PolicyRulesWithSubjects, path: &Path, errs: &mut ErrorList) {
    if rule.subjects.is_empty() {
        errs.required(path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, one) in rule.subjects.iter().enumerate() {
        subject(one, &path.child("subjects").index(i), errs);
    }
    let resources = rule.resource_rules.as_deref().unwrap_or_default();
    let others = rule.non_resource_rules.as_deref().unwrap_or_default();
    if resources.is_empty() && others.is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errs.required(path, why);
    }
    for (i, one) in resources.iter().enumerate() {
        resource_rule(one, &path.child("resourceRules").index(i), errs);
    }
    for (i, one) in others.iter().enumerate() {
        other_rule(one, &path.child("nonResourceRules").index(i), errs);
    }
}

fn subject(one: &Subject, path: &Path, errs: &mut ErrorList) {
    let set = [
        ("serviceAccount", "ServiceAccount", one.service_account.is_some()),
        ("user", "User", one.user.is_some()),
        ("group", "Group", one.group.is_some()),
    ];
    let Some((field, kind, present)) = set.iter().find(|(_, kind, _)| *kind == one.kind) else {
        errs.not_supported(path.child("kind"), one.kind.as_str(), &["Group", "ServiceAccount", "User"]);
        return;
    };
    if !present {
        errs.required(path.child(field), format!("{field} is required when subject kind is '{kind}'"));
    }
    for (field, kind, present) in set {
        if present && kind != one.kind {
            let why = format!("{field} is forbidden when subject kind is not '{kind}'");
            errs.forbidden(path.child(field), why);
        }
    }
    let at = path.child(field);
    let name = match one.kind.as_str() {
        "User" => one.user.as_ref().map(|s| &s.name),
        "Group" => one.group.as_ref().map(|s| &s.name),
        _ => one.service_account.as_ref().map(|s| &s.name),
    };
    if name.is_some_and(String::is_empty) {
        errs.required(at.child("name"), "");
    }
    let Some(account) = one.service_account.as_ref().filter(|_| one.kind == "ServiceAccount") else { return };
    if !matches!(account.name.as_str(), "" | "*") {
        named(errs, &at.child("name"), &account.name, names::dns1123_subdomain);
    }
    match account.namespace.as_str() {
        "" => errs.required(at.child("namespace"), "must specify namespace for service account"),
        namespace => named(errs, &at.child("namespace"), namespace, names::dns1123_label),
    }
}

fn has_all(list: &[String]) -> bool {
    list.iter().any(|item| item == "*")
}

/// `*` must stand alone.
fn alone(list: &[String], what: &str, path: &Path, errs: &mut ErrorList) {
    if list.len() > 1 && has_all(list) {
        errs.invalid(path, list.to_vec(), format!("if '*' is present, must not specify other {what}"));
    }
}

fn verbs(list: &[String], path: &Path, errs: &mut ErrorList) {
    if list.is_empty() {
        errs.required(path, "verbs must contain at least one value");
    } else if has_all(list) {
        alone(list, "verbs", path, errs);
    } else if !list.iter().all(|verb| VERBS.contains(&verb.as_str())) {
        errs.not_supported(path, list.to_vec(), VERBS);
    }
}

fn resource_rule(rule: &ResourcePolicyRule, path: &Path, errs: &mut ErrorList) {
    verbs(&rule.verbs, &path.child("verbs"), errs);
    for (field, list, need, what) in [
        ("apiGroups", &rule.api_groups, "resource rules must supply at least one api group", "api groups"),
        ("resources", &rule.resources, "resource rules must supply at least one resource", "resources"),
    ] {
        let at = path.child(field);
        if list.is_empty() {
            errs.required(&at, need);
        }
        alone(list, what, &at, errs);
    }
    let namespaces = rule.namespaces.as_deref().unwrap_or_default();
    let at = path.child("namespaces");
    if namespaces.is_empty() && !rule.cluster_scope.unwrap_or(false) {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        errs.required(at, why);
    } else if has_all(namespaces) {
        alone(namespaces, "namespaces", &at, errs);
    } else {
        for (i, name) in namespaces.iter().enumerate() {
            let intro = "each member of this list must be '*' or a DNS-1123 label; ";
            let messages = names::dns1123_label(name).into_iter().map(|why| format!("{intro}{why}"));
            each(errs, &at.index(i), name.as_str(), messages.collect());
        }
    }
}

fn other_rule(rule: &NonResourcePolicyRule, path: &Path, errs: &mut ErrorList) {
    verbs(&rule.verbs, &path.child("verbs"), errs);
    let (urls, at) = (&rule.non_resource_urls, path.child("nonResourceURLs"));
    if urls.is_empty() {
        errs.required(at, "nonResourceURLs must contain at least one value");
    } else if has_all(urls) {
        alone(urls, "non-resource URLs", &at, errs);
    } else {
        for (i, url) in urls.iter().enumerate() {
            if let Some(why) = url_fault(url) {
                errs.invalid(at.index(i), url.as_str(), why);
            }
        }
    }
}

fn url_fault(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || (stars == 1 && !url.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

/// The spec as Go prints it.
fn shown(spec: &FlowSchemaSpec) -> String {
    let lines = |items: Vec<String>| {
        if items.is_empty() { "null".to_owned() } else { format!("[{}]", items.join(",")) }
    };
    let list = |items: &[String]| if items.is_empty() { Value::Null } else { json!(items) };
    let subject = |s: &Subject| {
        let name = |name: Option<&String>| name.map_or(Value::Null, |name| json!({ "Name": name }));
        let account = s.service_account.as_ref().map_or("null".to_owned(), |a| {
            go_struct(&[("Namespace", json!(a.namespace)), ("Name", json!(a.name))])
        });
        format!(
            "{{\"Kind\":{},\"User\":{},\"Group\":{},\"ServiceAccount\":{account}}}",
            json!(s.kind),
            name(s.user.as_ref().map(|u| &u.name)),
            name(s.group.as_ref().map(|g| &g.name)),
        )
    };
    let resource = |r: &ResourcePolicyRule| {
        go_struct(&[
            ("Verbs", list(&r.verbs)),
            ("APIGroups", list(&r.api_groups)),
            ("Resources", list(&r.resources)),
            ("ClusterScope", json!(r.cluster_scope.unwrap_or(false))),
            ("Namespaces", list(r.namespaces.as_deref().unwrap_or_default())),
        ])
    };
    let other = |r: &NonResourcePolicyRule| {
        go_struct(&[("Verbs", list(&r.verbs)), ("NonResourceURLs", list(&r.non_resource_urls))])
    };
    let rule = |r: &PolicyRulesWithSubjects| {
        format!(
            "{{\"Subjects\":{},\"ResourceRules\":{},\"NonResourceRules\":{}}}",
            lines(r.subjects.iter().map(subject).collect()),
            lines(r.resource_rules.iter().flatten().map(resource).collect()),
            lines(r.non_resource_rules.iter().flatten().map(other).collect()),
        )
    };
    let method = spec.distinguisher_method.as_ref().map_or(Value::Null, |m| json!({ "Type": m.type_ }));
    format!(
        "{{\"PriorityLevelConfiguration\":{},\"MatchingPrecedence\":{},\"DistinguisherMethod\":{method},\"Rules\":{}}}",
        json!({ "Name": spec.priority_level_configuration.name }),
        spec.matching_precedence.unwrap_or(0),
        lines(spec.rules.iter().flatten().map(rule).collect()),
    )
}
