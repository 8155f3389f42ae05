//! Checks of a definition's spec: names, versions, columns, subresources, selectable fields, conversion.

use coracle_apiextensions::{Schema, defaults, field_path, prune, publish, structure};
use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1;
use serde_json::json;
use v1::{CustomResourceDefinition, CustomResourceValidation};

use super::internal::{Internal, Parts, dump_schema};
use super::props;
use super::schema_rules::{self, Strictness};
use crate::admissionregistration;

const COLUMN_TYPES: &str = "boolean,date,integer,number,string";
const COLUMN_FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";
const MAX_SELECTABLE: usize = 8;
/// What the root of a schema may say beside the status subresource, as Go names the fields.
const AT_ROOT: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength \
                       MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties \
                       ExternalDocs Example XPreserveUnknownFields XValidations]";

/// What is asked of a definition: of a new one everything, of a changed one what the old one fulfilled.
#[derive(Clone, Debug)]
pub(super) struct Options {
    strict: Strictness,
    schema: bool,
    structural: bool,
    pruned_defaults: bool,
    known_reviews: bool,
    loose_ca: bool,
    /// Versions with as many selectable fields as before, too many though they are.
    crowded: Vec<String>,
    /// The schemas as they were.
    known: Vec<v1::JSONSchemaProps>,
}

impl Options {
    pub(super) fn new() -> Self {
        Self {
            strict: Strictness { types: true, atomic_sets: true, keys: true },
            schema: true,
            structural: true,
            pruned_defaults: true,
            known_reviews: true,
            loose_ca: true,
            crowded: Vec::new(),
            known: Vec::new(),
        }
    }

    /// For a change of `old`, whose names are established or not.
    pub(super) fn for_change(
        new: &CustomResourceDefinition,
        old: &CustomResourceDefinition,
        established: bool,
    ) -> Self {
        let none = |is: &dyn Fn(&v1::JSONSchemaProps) -> bool| !props::of(old).any(|s| props::any(s, is));
        let bad_type = |s: &v1::JSONSchemaProps| {
            let kind = props::kind(s);
            !matches!(kind, "" | "array" | "boolean" | "integer" | "number" | "object" | "string")
        };
        let bad_keys = |s: &v1::JSONSchemaProps| {
            let mut errs = ErrorList::new();
            schema_rules::keys(s, &Path::new(""), &mut errs);
            !errs.is_empty()
        };
        let structural = props::of(old).all(|s| {
            Schema::new(s).is_ok_and(|schema| structure::faults(&schema, &Path::new("")).is_empty())
        });
        let reviews = |crd: &CustomResourceDefinition| {
            let webhook = crd.spec.conversion.as_ref().and_then(|c| c.webhook.as_ref());
            webhook.map(|w| w.conversion_review_versions.clone()).unwrap_or_default()
        };
        let before = reviews(old);
        let selectable = |crd: &CustomResourceDefinition, name: &str| {
            let version = crd.spec.versions.iter().find(|v| v.name == name);
            version.and_then(|v| v.selectable_fields.clone()).unwrap_or_default()
        };
        let crowded = new.spec.versions.iter().map(|v| v.name.clone()).filter(|name| {
            let old = selectable(old, name);
            old.len() > MAX_SELECTABLE && old == selectable(new, name)
        });
        Self {
            strict: Strictness {
                types: none(&bad_type),
                atomic_sets: none(&schema_rules::is_loose_set),
                keys: none(&bad_keys),
            },
            schema: old
                .spec
                .versions
                .iter()
                .all(|v| v.schema.as_ref().is_some_and(|s| s.open_api_v3_schema.is_some())),
            structural,
            pruned_defaults: !props::of(old).any(|s| Schema::new(s).is_ok_and(|s| has_loose_defaults(&s))),
            known_reviews: before.is_empty() || before.iter().any(|v| is_known_review(v)),
            loose_ca: !established || ca_of(old).is_some_and(|ca| !ca.is_empty() && ca_fault(&ca).is_some()),
            crowded: crowded.collect(),
            known: props::of(old).cloned().collect(),
        }
    }
}

fn has_loose_defaults(schema: &Schema) -> bool {
    schema.any(&mut |schema| {
        schema.default.as_ref().is_some_and(|default| {
            let mut kept = default.clone();
            prune::prune(&mut kept, schema, schema.embedded);
            kept != *default
        })
    })
}

fn is_known_review(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1")
}

fn ca_of(crd: &CustomResourceDefinition) -> Option<Vec<u8>> {
    let client = crd.spec.conversion.as_ref()?.webhook.as_ref()?.client_config.as_ref()?;
    client.ca_bundle.as_ref().map(|ca| ca.0.clone())
}

/// Why a bundle of certificates cannot be read.
fn ca_fault(pem: &[u8]) -> Option<String> {
    let mut blocks = x509_parser::pem::Pem::iter_from_buffer(pem);
    let certificates = blocks.by_ref().filter_map(Result::ok).filter(|block| block.label == "CERTIFICATE");
    let mut any = false;
    for block in certificates {
        any = true;
        if let Err(e) = block.parse_x509() {
            return Some(e.to_string());
        }
    }
    (!any).then(|| "data does not contain any valid RSA or ECDSA certificates".to_owned())
}

/// Whether the bundle of a definition's conversion webhook is given and cannot be read.
pub(super) fn has_bad_ca(crd: &CustomResourceDefinition) -> bool {
    ca_of(crd).is_some_and(|ca| !ca.is_empty() && ca_fault(&ca).is_some())
}

/// Checks the spec.
pub(super) fn check(crd: &CustomResourceDefinition, opts: &Options, errs: &mut ErrorList) {
    let (spec, at) = (&crd.spec, Path::new("spec"));
    if spec.group.is_empty() {
        errs.required(at.child("group"), "");
    } else {
        let faults = names::dns1123_subdomain(&spec.group);
        if !faults.is_empty() {
            errs.invalid(at.child("group"), spec.group.as_str(), faults.join(","));
        } else if !spec.group.contains('.') {
            let why = "should be a domain with at least one dot";
            errs.invalid(at.child("group"), spec.group.as_str(), why);
        }
    }
    choice(&spec.scope, &["Cluster", "Namespaced"], &at.child("scope"), errs);
    let preserve = spec.preserve_unknown_fields == Some(true);
    let has = |is: &dyn Fn(&v1::JSONSchemaProps) -> bool| props::of(crd).any(|s| props::any(s, is));
    let defaults = has(&|s| s.default.as_ref().is_some_and(|d| !d.0.is_null()));
    let structural = opts.structural || !preserve || defaults || has(&has_extensions);
    for (i, version) in spec.versions.iter().enumerate() {
        if version.schema.as_ref().is_some_and(|s| s.open_api_v3_schema.is_some()) {
            continue;
        }
        let at = at.child("versions").index(i).child("schema").child("openAPIV3Schema");
        if opts.schema {
            errs.required(at, "");
        } else if !preserve && version.served {
            errs.required(at, "because otherwise all fields are pruned");
        }
    }
    if defaults && preserve {
        let why = "must be false in order to use defaults in the schema";
        errs.invalid(at.child("preserveUnknownFields"), true, why);
    }
    let opts = &Options { structural, ..opts.clone() };
    versions(crd, opts, &at, errs);
    for (name, value) in [
        ("plural", spec.names.plural.as_str()),
        ("singular", spec.names.singular.as_deref().unwrap_or("")),
        ("kind", spec.names.kind.as_str()),
        ("listKind", spec.names.list_kind.as_deref().unwrap_or("")),
    ] {
        if value.is_empty() {
            errs.required(at.child("names").child(name), "");
        }
    }
    check_names(&spec.names, &at.child("names"), errs);
    let shared = Internal::new(spec).shared;
    let any_status =
        has_status(shared.subresources) || spec.versions.iter().any(|v| has_status(v.subresources.as_ref()));
    parts(&shared, any_status, "validation", "", opts, &at, errs);
    if let Some(conversion) = &spec.conversion {
        if conversion.strategy != "None" && preserve {
            let at = at.child("conversion").child("strategy");
            let why = "must be None if spec.preserveUnknownFields is true";
            errs.invalid(at, conversion.strategy.as_str(), why);
        }
        check_conversion(conversion, opts, &at.child("conversion"), errs);
    }
}

fn has_extensions(s: &v1::JSONSchemaProps) -> bool {
    s.x_kubernetes_embedded_resource == Some(true)
        || s.x_kubernetes_preserve_unknown_fields.is_some()
        || s.x_kubernetes_int_or_string == Some(true)
        || s.x_kubernetes_list_map_keys.as_ref().is_some_and(|k| !k.is_empty())
        || s.x_kubernetes_list_type.is_some()
        || s.x_kubernetes_validations.as_ref().is_some_and(|v| !v.is_empty())
}

fn has_status(sub: Option<&v1::CustomResourceSubresources>) -> bool {
    sub.is_some_and(|sub| sub.status.is_some())
}

/// A word of a closed set, which must be there.
fn choice(value: &str, set: &[&str], at: &Path, errs: &mut ErrorList) {
    if value.is_empty() {
        errs.required(at, "");
    } else if !set.contains(&value) {
        errs.not_supported(at, value, set);
    }
}

fn versions(crd: &CustomResourceDefinition, opts: &Options, at: &Path, errs: &mut ErrorList) {
    let spec = &crd.spec;
    let internal = Internal::new(spec);
    let all = at.child("versions");
    for (i, (version, own)) in spec.versions.iter().zip(&internal.own).enumerate() {
        let at = all.index(i);
        let faults = names::dns1035_label(&version.name);
        if !faults.is_empty() {
            errs.invalid(at.child("name"), version.name.as_str(), faults.join(","));
        }
        let warning = version.deprecation_warning.as_deref();
        for why in deprecation_faults(version.deprecated == Some(true), warning) {
            errs.invalid(at.child("deprecationWarning"), warning.unwrap_or(""), why);
        }
        let status = has_status(version.subresources.as_ref());
        parts(own, status, "schema", &version.name, opts, &at, errs);
    }
    let mut invalid = |why: &str| {
        errs.push(Error {
            kind: ErrorKind::Invalid,
            path: all.to_string(),
            value: Some(internal.dump(spec)),
            detail: why.into(),
        });
    };
    let mut seen: Vec<&str> = Vec::new();
    if spec.versions.iter().any(|v| {
        seen.contains(&v.name.as_str()) || {
            seen.push(&v.name);
            false
        }
    }) {
        invalid("must contain unique version names");
    }
    if spec.versions.iter().filter(|v| v.storage).count() != 1 {
        invalid("must have exactly one version marked as storage version");
    }
    let first = spec.versions.first().map_or("", |v| v.name.as_str());
    let faults = names::dns1035_label(first);
    if !first.is_empty() && !faults.is_empty() {
        errs.invalid(at.child("version"), first, faults.join(","));
    }
}

fn deprecation_faults(deprecated: bool, warning: Option<&str>) -> Vec<String> {
    let Some(warning) = warning else { return Vec::new() };
    if !deprecated {
        return vec!["can only be set for deprecated versions".into()];
    }
    let mut out = Vec::new();
    if warning.len() > 256 {
        out.push("must be <= 256 characters long".into());
    }
    if warning.is_empty() {
        out.push("must not be an empty string".into());
    }
    // Go counts as printable what is neither a control character nor a space other than the plain one.
    let printable = |c: char| c == ' ' || !(c.is_control() || c.is_whitespace());
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| !printable(*c)) {
        out.push(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
    out
}

/// Checks schema, subresources, columns and selectable fields, of one version or shared by all.
fn parts(
    parts: &Parts<'_>,
    status: bool,
    word: &str,
    version: &str,
    opts: &Options,
    at: &Path,
    errs: &mut ErrorList,
) {
    if let Some(schema) = parts.schema {
        check_schema(schema, status, opts, &at.child(word), errs);
    }
    if let Some(sub) = parts.subresources {
        check_subresources(sub, &at.child("subresources"), errs);
    }
    for (i, column) in parts.columns.iter().enumerate() {
        check_column(column, &at.child("additionalPrinterColumns").index(i), errs);
    }
    if parts.selectable.is_empty() {
        return;
    }
    let at = at.child("selectableFields");
    // The schema may be shared while the fields are not; upstream then finds none.
    match parts.schema.and_then(|s| s.open_api_v3_schema.as_ref()) {
        None if version.is_empty() => {
            errs.invalid(at, "", "may only be set when validations.schema is included");
        }
        None => {
            errs.invalid(at, "", "may only be set when `version.schema.openAPIV3Schema` is not included");
        }
        Some(props) => {
            if let Ok(schema) = Schema::new(props) {
                let crowded = opts.crowded.iter().any(|name| name == version);
                check_selectable(parts.selectable, &schema, crowded, &at, errs);
            }
        }
    }
}

fn check_selectable(
    fields: &[v1::SelectableField],
    schema: &Schema,
    crowded: bool,
    at: &Path,
    errs: &mut ErrorList,
) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let (path, at) = (field.json_path.as_str(), at.index(i).child("jsonPath"));
        if path.is_empty() {
            errs.required(at, "");
            continue;
        }
        let found = match field_path::follow(path, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errs.invalid(at, path, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if found.steps.first().is_some_and(|first| first == "metadata") {
            errs.invalid(&at, path, "must not point to fields in metadata");
        }
        let kind = found.schema.map_or("", |s| s.kind.as_str());
        if !matches!(kind, "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                       with formats are allowed.";
            errs.invalid(&at, path, why);
        }
        if seen.contains(&found.steps) {
            errs.duplicate(at, path);
        } else {
            seen.push(found.steps);
        }
    }
    if seen.len() > MAX_SELECTABLE && !crowded {
        errs.too_many(at, seen.len(), MAX_SELECTABLE);
    }
}

fn check_schema(
    validation: &CustomResourceValidation,
    status: bool,
    opts: &Options,
    at: &Path,
    errs: &mut ErrorList,
) {
    let Some(props) = &validation.open_api_v3_schema else { return };
    let at = at.child("openAPIV3Schema");
    let mut found = ErrorList::new();
    if status {
        beside_status(props, &at, &mut found);
    }
    if props.nullable == Some(true) {
        found.forbidden(at.child("nullable"), "nullable cannot be true at the root");
    }
    let mut refused = None;
    if opts.structural {
        match Schema::new(props) {
            Err(why) => refused = Some(why),
            Ok(schema) => {
                let faults = structure::faults(&schema, &at);
                if faults.is_empty() {
                    defaults::validate_defaults(&schema, &at, opts.pruned_defaults, &mut found);
                } else {
                    found.extend(faults);
                }
            }
        }
    }
    schema_rules::check(props, opts.strict, &at, &mut found);
    if let Some(why) = refused.filter(|_| found.is_empty()) {
        found.invalid(&at, "", why);
    }
    if let Ok(schema) = Schema::new(props)
        && opts.structural
        && found.is_empty()
        && schema.any(&mut |inner| !inner.rules.is_empty())
    {
        coracle_cel::rules::check(&publish::value(&schema), &at, opts.known.contains(props), &mut found);
    }
    errs.extend(found);
}

/// What the root of a schema may say when there is a status subresource.
fn beside_status(props: &v1::JSONSchemaProps, at: &Path, errs: &mut ErrorList) {
    // In the order of Go's fields; the first one out of place ends the check.
    let some = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    let first = [some(&props.id), some(&props.schema), props.ref_path.is_some()];
    let later = [
        props.nullable == Some(true),
        props.default.is_some(),
        props.enum_.as_ref().is_some_and(|e| !e.is_empty()),
        props.max_properties.is_some(),
        props.min_properties.is_some(),
        props.all_of.as_ref().is_some_and(|l| !l.is_empty()),
        props.one_of.as_ref().is_some_and(|l| !l.is_empty()),
        props.any_of.as_ref().is_some_and(|l| !l.is_empty()),
        props.not.is_some(),
        props.additional_properties.is_some(),
        props.pattern_properties.as_ref().is_some_and(|m| !m.is_empty()),
        props.dependencies.as_ref().is_some_and(|m| !m.is_empty()),
        props.additional_items.is_some(),
        props.definitions.as_ref().is_some_and(|m| !m.is_empty()),
        props.x_kubernetes_embedded_resource == Some(true),
        props.x_kubernetes_int_or_string == Some(true),
        props.x_kubernetes_list_map_keys.as_ref().is_some_and(|k| !k.is_empty()),
        props.x_kubernetes_list_type.is_some(),
        props.x_kubernetes_map_type.is_some(),
    ];
    let kind = props::kind(props);
    if !first.contains(&true) && !matches!(kind, "" | "object") {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is \
                   enabled";
        errs.invalid(Path::new(&format!("{at}.type")), kind, why);
    } else if first.contains(&true) || later.contains(&true) {
        let why = format!(
            "only {AT_ROOT} fields are allowed at the root of the schema if the status subresource is enabled"
        );
        errs.push(Error {
            kind: ErrorKind::Invalid,
            path: at.to_string(),
            value: Some(dump_schema(props)),
            detail: why,
        });
    }
}

fn check_subresources(sub: &v1::CustomResourceSubresources, at: &Path, errs: &mut ErrorList) {
    let Some(scale) = &sub.scale else { return };
    let mut path = |value: &str, name: &str, roots: &[&str], why: &str| {
        let at = at.child(&format!("scale.{name}"));
        let before = errs.len();
        simple_path(value, &at, errs);
        if errs.len() == before && !roots.iter().any(|root| value.starts_with(root)) {
            errs.invalid(at, value, why);
        }
    };
    path(&scale.spec_replicas_path, "specReplicasPath", &[".spec."], "should be a json path under .spec");
    let why = "should be a json path under .status";
    path(&scale.status_replicas_path, "statusReplicasPath", &[".status."], why);
    if let Some(selector) = scale.label_selector_path.as_deref().filter(|path| !path.is_empty()) {
        let why = "should be a json path under either .spec or .status";
        path(selector, "labelSelectorPath", &[".spec.", ".status."], why);
    }
}

fn simple_path(path: &str, at: &Path, errs: &mut ErrorList) {
    if path.is_empty() {
        errs.required(at, "");
    } else if !path.starts_with('.') {
        errs.invalid(at, path, "must be a simple json path starting with .");
    }
}

fn check_column(column: &v1::CustomResourceColumnDefinition, at: &Path, errs: &mut ErrorList) {
    if column.name.is_empty() {
        errs.required(at.child("name"), "");
    }
    let one_of = |set: &str| format!("must be one of {set}");
    if column.type_.is_empty() {
        errs.required(at.child("type"), one_of(COLUMN_TYPES));
    } else if !COLUMN_TYPES.split(',').any(|t| t == column.type_) {
        errs.invalid(at.child("type"), column.type_.as_str(), one_of(COLUMN_TYPES));
    }
    if let Some(format) = column.format.as_deref().filter(|f| !f.is_empty())
        && !COLUMN_FORMATS.split(',').any(|f| f == format)
    {
        errs.invalid(at.child("format"), format, one_of(COLUMN_FORMATS));
    }
    simple_path(&column.json_path, &at.child("JSONPath"), errs);
}

/// Checks requested or accepted names.
pub(super) fn check_names(wanted: &v1::CustomResourceDefinitionNames, at: &Path, errs: &mut ErrorList) {
    let mut label = |at: Path, value: &str, mixed: bool| {
        let lower = value.to_lowercase();
        let faults = names::dns1035_label(if mixed { &lower } else { value });
        if value.is_empty() || faults.is_empty() {
            return;
        }
        let why = faults.join(",");
        let why = if mixed { format!("may have mixed case, but should otherwise match: {why}") } else { why };
        errs.invalid(at, value, why);
    };
    let list_kind = wanted.list_kind.as_deref().unwrap_or("");
    label(at.child("plural"), &wanted.plural, false);
    label(at.child("singular"), wanted.singular.as_deref().unwrap_or(""), false);
    label(at.child("kind"), &wanted.kind, true);
    label(at.child("listKind"), list_kind, true);
    let mut labels = |word: &str, values: &Option<Vec<String>>| {
        for (i, value) in values.iter().flatten().enumerate() {
            let faults = names::dns1035_label(value);
            if !faults.is_empty() {
                errs.invalid(at.child(word).index(i), value.as_str(), faults.join(","));
            }
        }
    };
    labels("shortNames", &wanted.short_names);
    labels("categories", &wanted.categories);
    if !wanted.kind.is_empty() && wanted.kind == list_kind {
        errs.invalid(at.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
}

fn check_conversion(
    conversion: &v1::CustomResourceConversion,
    opts: &Options,
    at: &Path,
    errs: &mut ErrorList,
) {
    choice(&conversion.strategy, &["None", "Webhook"], &at.child("strategy"), errs);
    let webhook = conversion.webhook.as_ref();
    let client = webhook.and_then(|w| w.client_config.as_ref());
    let reviews = webhook.map(|w| w.conversion_review_versions.as_slice()).unwrap_or_default();
    let (of_client, of_reviews) = (at.child("webhookClientConfig"), at.child("conversionReviewVersions"));
    if conversion.strategy != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errs.forbidden(of_client, why);
        }
        if !reviews.is_empty() {
            errs.forbidden(of_reviews, why);
        }
        return;
    }
    match client {
        None => errs.required(of_client, "required when strategy is set to Webhook"),
        Some(client) => {
            match (&client.url, &client.service) {
                (Some(url), None) => admissionregistration::webhook_url(url, &of_client.child("url"), errs),
                (None, Some(service)) => {
                    let service = k8s_openapi::api::admissionregistration::v1::ServiceReference {
                        name: service.name.clone(),
                        namespace: service.namespace.clone(),
                        path: service.path.clone(),
                        port: service.port,
                    };
                    admissionregistration::webhook_service(&service, &of_client.child("service"), errs);
                }
                _ => errs.required(&of_client, "exactly one of url or service is required"),
            }
            if let Some(ca) = client.ca_bundle.as_ref().filter(|ca| !ca.0.is_empty() && !opts.loose_ca)
                && let Some(why) = ca_fault(&ca.0)
            {
                let why = format!("unable to load root certificates: {why}");
                errs.invalid(of_client.child("caBundle"), json!(ca), why);
            }
        }
    }
    if reviews.is_empty() {
        return errs.required(of_reviews, "");
    }
    for (i, version) in reviews.iter().enumerate() {
        if reviews[..i].contains(version) {
            errs.invalid(of_reviews.index(i), version.as_str(), "duplicate version");
            continue;
        }
        for why in names::dns1035_label(version) {
            errs.invalid(of_reviews.index(i), version.as_str(), why);
        }
    }
    if opts.known_reviews && !reviews.iter().any(|v| is_known_review(v)) {
        errs.invalid(of_reviews, reviews.to_vec(), "must include at least one of v1, v1beta1");
    }
}
