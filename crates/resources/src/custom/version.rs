//! One version of a definition, ready to be served. Its schema is compiled when first needed: a cluster may have
//! a hundred large definitions of which it uses three.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coracle_apiextensions::column::Column;
use coracle_apiextensions::json_path::JsonPath;
use coracle_apiextensions::{Schema, publish};
use coracle_cel::rules::Rules;
use coracle_meta::names::compare_versions;
use coracle_meta::schema::Schemas;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::intern;
use crate::apiextensions::conditions;

/// Where the scale subresource finds its numbers, as the definition writes it: `.spec.replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Wanted replicas.
    pub spec: String,
    /// Actual replicas.
    pub status: String,
    /// The selector's text.
    pub selector: Option<String>,
}

/// How objects get from one version to another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Only `apiVersion` differs.
    None,
    /// A webhook knows.
    Webhook {
        /// Where it is.
        client: Box<WebhookClientConfig>,
        /// Versions of ConversionReview that it understands.
        reviews: Vec<String>,
    },
}

/// A version of a custom resource.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "names as in the definition")]
pub struct CustomVersion {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Has a status subresource.
    pub status: bool,
    pub scale: Option<Scale>,
    /// Clients may use it; else it is only what some objects are stored in.
    pub served: bool,
    /// New objects are stored in it.
    pub storage: bool,
    /// The definition is being deleted: nothing new is accepted.
    pub terminating: bool,
    /// What its users are told.
    pub deprecation: Option<String>,
    pub conversion: Conversion,
    /// Fields are neither pruned nor defaulted (old definitions only).
    pub preserve: bool,
    pub columns: Vec<Column>,
    /// Names and paths of the selectable fields.
    pub selectable: Vec<(&'static str, JsonPath)>,
    /// uid and generation of the definition: the schema is that of them.
    pub source: (String, i64),
    /// The definition as stored, to read the schema from. Decoded it takes ten times as much memory.
    definition: Bytes,
    schema: Arc<OnceLock<Schema>>,
    rules: Arc<OnceLock<Option<Rules>>>,
    /// Types of all versions, shared by them.
    fields: Arc<OnceLock<Schemas>>,
    /// The kind's name in `fields`.
    fields_name: String,
}

impl CustomVersion {
    /// What the schema says, words left out.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| schema_of(self.props().as_ref()))
    }

    /// The rules (`x-kubernetes-validations`) of the schema, if it has any.
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.get_or_init(|| Rules::new(&publish::value(self.schema()))).as_ref()
    }

    /// The types for field tracking: those of all versions, each under its [`CustomVersion::fields_name`].
    pub fn fields(&self) -> &Schemas {
        self.fields.get_or_init(|| compile_fields(&self.versions()))
    }

    /// The kind's name in [`CustomVersion::fields`].
    pub fn fields_name(&self) -> &str {
        &self.fields_name
    }

    /// The schema with all its words, if the version has one.
    pub fn described(&self) -> Option<Schema> {
        self.props().and_then(|props| Schema::new(&props).ok())
    }

    /// What makes this version another one for its clients, the schema aside: that is told by `source`.
    pub fn is_like(&self, other: &Self) -> bool {
        let facts = |v: &Self| {
            let names = (v.kind.clone(), v.list_kind.clone(), v.plural.clone(), v.singular.clone());
            (v.source.clone(), v.terminating, names, v.short_names.clone(), v.categories.clone())
        };
        facts(self) == facts(other)
    }

    fn versions(&self) -> Vec<CustomResourceDefinitionVersion> {
        let definition = serde_json::from_slice::<CustomResourceDefinition>(&self.definition);
        definition.map(|crd| crd.spec.versions).unwrap_or_default()
    }

    fn props(&self) -> Option<JSONSchemaProps> {
        let version = self.versions().into_iter().find(|v| v.name == self.version)?;
        version.schema?.open_api_v3_schema
    }

    /// Lets go of the definition and of what was compiled from it: it is gone.
    pub(super) fn forget(&mut self) {
        self.definition = Bytes::new();
        (self.schema, self.rules, self.fields) = (Arc::default(), Arc::default(), Arc::default());
    }

    /// Takes over what `before` has compiled, if it is of the same schema.
    pub(super) fn inherit(&mut self, before: &Self) {
        if self.source == before.source {
            self.schema = before.schema.clone();
            self.rules = before.rules.clone();
            self.fields = before.fields.clone();
        }
    }
}

/// A schema for checking; without one everything goes.
fn schema_of(props: Option<&JSONSchemaProps>) -> Schema {
    let schema = props.and_then(|props| Schema::new(props).ok());
    schema.map_or_else(|| Schema { preserve: true, ..Schema::default() }, |schema| without_words(&schema))
}

fn has_status(version: &CustomResourceDefinitionVersion) -> bool {
    version.subresources.as_ref().is_some_and(|s| s.status.is_some())
}

/// `v1.custom`, or `v1.custom-status`, whose status only its subresource owns.
fn fields_name(version: &CustomResourceDefinitionVersion) -> String {
    format!("{}.{}", version.name, if has_status(version) { "custom-status" } else { "custom" })
}

/// A schema as it is checked: without descriptions, titles and examples.
fn without_words(schema: &Schema) -> Schema {
    let mut out = publish::map_below(schema, &without_words);
    (out.description, out.title, out.example, out.external_docs) = Default::default();
    out
}

fn compile_fields(versions: &[CustomResourceDefinitionVersion]) -> Schemas {
    let mut generator = SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<ObjectMeta>();
    let mut definitions: Map<String, Value> = generator.take_definitions(true);
    let meta = json!({ "$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta" });
    for version in versions {
        let schema = schema_of(version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()));
        let mut own = publish::value(&schema);
        own["properties"]["apiVersion"] = json!({ "type": "string" });
        own["properties"]["kind"] = json!({ "type": "string" });
        own["properties"]["metadata"] = meta.clone();
        if schema.kind.is_empty() {
            own["type"] = "object".into();
        }
        embed(&mut own, &meta);
        definitions.insert(fields_name(version), own);
    }
    Schemas::compile(&definitions)
}

/// Gives the whole objects within an object their metadata.
fn embed(schema: &mut Value, meta: &Value) {
    let Some(map) = schema.as_object_mut() else { return };
    // To structured merging they are of no type.
    map.remove("x-kubernetes-int-or-string");
    if map.get("x-kubernetes-embedded-resource").is_some() {
        let properties = map.entry("properties").or_insert_with(|| json!({}));
        properties["apiVersion"] = json!({ "type": "string" });
        properties["kind"] = json!({ "type": "string" });
        properties["metadata"] = meta.clone();
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| embed(property, meta));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            embed(inner, meta);
        }
    }
}

/// The versions of a definition that are served or stored; none while its names are not accepted. `encoded` is the
/// definition's JSON.
pub fn of_definition(crd: &CustomResourceDefinition, encoded: &Bytes) -> Vec<CustomVersion> {
    if !conditions::is_true(crd, "Established") {
        return Vec::new();
    }
    let fields = Arc::default();
    crd.spec.versions.iter().map(|version| new_version((crd, encoded), version, &fields)).collect()
}

fn new_version(
    (crd, encoded): (&CustomResourceDefinition, &Bytes),
    version: &CustomResourceDefinitionVersion,
    fields: &Arc<OnceLock<Schemas>>,
) -> CustomVersion {
    let names = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()).unwrap_or(&crd.spec.names);
    let sub = version.subresources.as_ref();
    let webhook =
        crd.spec.conversion.as_ref().filter(|c| c.strategy == "Webhook").and_then(|c| c.webhook.as_ref());
    let conversion = match webhook.and_then(|w| Some((w.client_config.clone()?, w))) {
        Some((client, webhook)) => Conversion::Webhook {
            client: Box::new(client),
            reviews: webhook.conversion_review_versions.clone(),
        },
        None => Conversion::None,
    };
    let columns = version.additional_printer_columns.as_deref();
    let selectable = version.selectable_fields.iter().flatten().filter_map(|field| {
        let name = field.json_path.strip_prefix('.').unwrap_or(&field.json_path);
        Some((intern(name), JsonPath::parse(&field.json_path).ok()?))
    });
    let meta = &crd.metadata;
    CustomVersion {
        group: crd.spec.group.clone(),
        version: version.name.clone(),
        kind: names.kind.clone(),
        list_kind: names.list_kind.clone().unwrap_or_else(|| format!("{}List", names.kind)),
        plural: names.plural.clone(),
        singular: names.singular.clone().unwrap_or_default(),
        short_names: names.short_names.clone().unwrap_or_default(),
        categories: names.categories.clone().unwrap_or_default(),
        namespaced: crd.spec.scope == "Namespaced",
        status: has_status(version),
        scale: sub.and_then(|s| s.scale.as_ref()).map(|scale| Scale {
            spec: scale.spec_replicas_path.clone(),
            status: scale.status_replicas_path.clone(),
            selector: scale.label_selector_path.clone().filter(|path| !path.is_empty()),
        }),
        served: version.served,
        storage: version.storage,
        terminating: conditions::is_true(crd, "Terminating"),
        deprecation: deprecation(crd, version),
        conversion,
        preserve: crd.spec.preserve_unknown_fields == Some(true),
        columns: columns.map_or_else(age_column, |columns| columns.iter().map(column).collect()),
        selectable: selectable.collect(),
        source: (meta.uid.clone().unwrap_or_default(), meta.generation.unwrap_or(0)),
        definition: encoded.clone(),
        schema: Arc::default(),
        rules: Arc::default(),
        fields: fields.clone(),
        fields_name: fields_name(version),
    }
}

fn column(
    c: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition,
) -> Column {
    let description = c.description.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| {
        format!("Custom resource definition column (in JSONPath format): {}", c.json_path)
    });
    Column {
        name: c.name.clone(),
        kind: c.type_.clone(),
        format: c.format.clone().unwrap_or_default(),
        description,
        priority: c.priority.unwrap_or(0),
        path: JsonPath::parse(&c.json_path).ok(),
    }
}

/// What a table shows beside the name when the definition says nothing.
fn age_column() -> Vec<Column> {
    vec![Column {
        name: "Age".into(),
        kind: "date".into(),
        format: String::new(),
        description: crate::def::AGE.description.into(),
        priority: 0,
        path: JsonPath::parse(".metadata.creationTimestamp").ok(),
    }]
}

fn deprecation(crd: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) -> Option<String> {
    if version.deprecated != Some(true) {
        return None;
    }
    if let Some(text) = &version.deprecation_warning {
        return Some(text.clone());
    }
    let (group, kind) = (&crd.spec.group, &crd.spec.names.kind);
    let text = format!("{group}/{} {kind} is deprecated", version.name);
    let usable = crd.spec.versions.iter().filter(|v| v.served && v.deprecated != Some(true)).map(|v| &v.name);
    let newer = usable.filter(|name| compare_versions(&version.name, name).is_lt());
    Some(match newer.max_by(|a, b| compare_versions(a, b)) {
        Some(newest) => format!("{text}; use {group}/{newest} {kind}"),
        None => text,
    })
}
