//! What a kind declares: [`ResourceDef`], its [`Strategy`] and table columns.

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use coracle_meta::field::ErrorList;
use coracle_meta::object_meta::Recheck;
use coracle_meta::{Kind, Object, Status, go};
use serde_json::Value;

use crate::custom::CustomStrategy;
use crate::gaps;
use crate::version::View;

/// Whether objects live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// Once per cluster.
    Cluster,
}

/// How the machinery treats a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Stored, with all verbs.
    Stored,
    /// Create-only and answered by the server itself (reviews); never stored.
    Virtual,
    /// Read-only and made up by the server at each request; never stored.
    Computed,
}

/// What a subresource does. The generic verbs implement each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// get, update, patch of `.status`.
    Status,
    /// get, update, patch of an autoscaling/v1 Scale; needs [`ResourceDef::scale`].
    Scale,
    /// Pods: create a Binding.
    Binding,
    /// Pods: create an Eviction.
    Eviction,
    /// Pods: ephemeral containers.
    EphemeralContainers,
    /// Pods: in-place resize.
    Resize,
    /// Namespaces: update of `spec.finalizers`.
    Finalize,
    /// CertificateSigningRequests: get, update, patch of the conditions Approved and Denied.
    Approval,
    /// ServiceAccounts: create a TokenRequest.
    Token,
    /// Pods: GET log, proxied to the kubelet.
    Log,
    /// Pods: streaming, proxied to the kubelet.
    Exec,
    /// Pods: streaming, proxied to the kubelet.
    Attach,
    /// Pods: streaming, proxied to the kubelet.
    PortForward,
    /// Pods, services, nodes: HTTP proxy.
    Proxy,
}

impl Subresource {
    /// The path segment.
    pub fn path(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
            Self::Token => "token",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
        }
    }
}

/// A printer column of the Table encoding:
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Header, e.g. `Ready`.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date` …
    pub kind: &'static str,
    /// OpenAPI format: `name` for the name column, else usually empty.
    pub format: &'static str,
    /// 0 is always shown, 1 and more only with `-o wide`.
    pub priority: i32,
    /// Help text.
    pub description: &'static str,
}

/// Paths of the scale subresource inside the object, as JSON pointers.
#[derive(Clone, Copy, Debug)]
pub struct ScalePaths {
    /// e.g. `/spec/replicas`.
    pub spec_replicas: &'static str,
    /// e.g. `/status/replicas`.
    pub status_replicas: &'static str,
    /// Pointer to the LabelSelector (or selector map), e.g. `/spec/selector`.
    pub selector: &'static str,
}

/// What surrounds a strategy call.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Name of the requesting user.
    pub user: &'a str,
    /// Unique id of the user; often empty.
    pub uid: &'a str,
    /// Groups of the user.
    pub groups: &'a [String],
    /// Extra attributes of the user.
    pub extra: Option<&'a BTreeMap<String, Vec<String>>>,
    /// Now.
    pub now: jiff::Timestamp,
}

impl<'a> Context<'a> {
    /// A call on behalf of a user of whom only the name is known.
    pub fn named(user: &'a str, now: jiff::Timestamp) -> Self {
        Self { user, uid: "", groups: &[], extra: None, now }
    }
}

/// The behaviour of a kind that the generic verbs ask for. Every method has upstream's generic default.
///
/// Order on create: `default`, admission, `prepare_create`, `validate`. On update: `default`, admission,
/// `prepare_update`, `validate_update`. On a status update: `prepare_status_update`,
/// `validate_status_update`.
/// Object metadata (name, labels, owner references …) is validated by the machinery.
#[expect(unused_variables, reason = "defaults of a trait that kinds override")]
pub trait Strategy<K: Kind>: Send + Sync + 'static {
    /// Fills in upstream's defaults (v1 defaulting). Also applied to objects being updated and patched.
    fn default(&self, obj: &mut K) {}
    /// Drops what a creator may not set (status), and sets what the server decides.
    fn prepare_create(&self, cx: Context<'_>, obj: &mut K) {}
    /// Keeps what an update through the main resource may not change (status). The machinery compares spec
    /// to raise `metadata.generation` for kinds with `has_generation`.
    fn prepare_update(&self, cx: Context<'_>, new: &mut K, old: &K) {}
    /// Keeps everything but the status.
    fn prepare_status_update(&self, cx: Context<'_>, new: &mut K, old: &K) {}
    /// Checks a new object.
    fn validate(&self, obj: &K, errs: &mut ErrorList) {}
    /// Checks a change; called with both. Usually calls `validate` too.
    fn validate_update(&self, new: &K, old: &K, errs: &mut ErrorList) {
        self.validate(new, errs);
    }
    /// Checks a status change.
    fn validate_status_update(&self, new: &K, old: &K, errs: &mut ErrorList) {}
    /// Keeps what an update through a subresource other than status (`ephemeralcontainers`, `resize`,
    /// `finalize`, `approval`) may not change.
    fn prepare_part_update(&self, part: Subresource, cx: Context<'_>, new: &mut K, old: &K) {
        self.prepare_update(cx, new, old);
    }
    /// Checks a change through a subresource other than status.
    fn validate_part_update(&self, part: Subresource, new: &K, old: &K, errs: &mut ErrorList) {
        self.validate_update(new, old, errs);
    }
    /// Reason and message of the row condition `Completed` (tables of finished pods), if it has one.
    fn completed(&self, obj: &K) -> Option<(&'static str, &'static str)> {
        None
    }
    /// Warnings for the client (`Warning` headers), for a new object or a change.
    fn warnings(&self, new: &K, old: Option<&K>) -> Vec<String> {
        Vec::new()
    }
    /// Takes out fields of features that are off. Who sent them owns them all the same.
    fn drop_disabled(&self, obj: &mut K) {}
    /// Fills in what upstream's store does not hold after a write and its reader adds; true when there was such a
    /// thing. The next write then makes a revision even if it changes nothing.
    fn settle(&self, obj: &mut K) -> bool {
        false
    }
    /// Checks `metadata.name`; the message list is empty when valid. DNS-1123 subdomain unless overridden.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::def::dns1123_subdomain(name, prefix)
    }
    /// Cells of the table row, one per column of the definition.
    fn row(&self, obj: &K, now: jiff::Timestamp) -> Vec<Value> {
        let meta = obj.metadata();
        vec![meta.name.clone().into(), age(meta.creation_timestamp.as_ref(), now)]
    }
    /// Values of the selectable fields beside `metadata.name` and `metadata.namespace`, e.g.
    /// `("spec.nodeName", "n1")`. Always the same keys in the same order.
    fn selectable(&self, obj: &K) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// Graceful deletion: seconds to grant before removal, given what was asked. `None` deletes at once
    /// (subject to finalizers). Pods and Namespaces override it.
    fn graceful_deletion(&self, obj: &K, asked: Option<i64>) -> Option<i64> {
        None
    }
}

/// The age cell of a table: a duration text such as `5m`, or `<unknown>`.
pub fn age(
    created: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    now: jiff::Timestamp,
) -> Value {
    match created {
        None => "<unknown>".into(),
        Some(time) => human_duration(now.as_second().saturating_sub(time.0.as_second())).into(),
    }
}

/// Upstream's `duration.HumanDuration`: two units at the most, e.g. `2d3h`, `5m10s`, `45s`.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |a: i64, ua: &str, b: i64, ub: &str| {
        if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") }
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// Messages for a name that is not a DNS-1123 subdomain. `prefix`: a generateName prefix, which may end
/// with a dash.
pub fn dns1123_subdomain(name: &str, prefix: bool) -> Vec<String> {
    let name = if prefix { name.trim_end_matches('-') } else { name };
    let label = |l: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(l.chars().next())
            && edge(l.chars().last())
            && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let mut out = Vec::new();
    if name.len() > 253 {
        out.push("must be no more than 253 characters".to_owned());
    }
    if !name.split('.').all(label) {
        out.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
             validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    out
}

/// [`Strategy`] without its type parameter: what the generic verbs call. Implemented by [`Typed`] only.
/// Passing an object of another kind is a programming error and reported as a 500.
#[expect(missing_docs, reason = "each method is the one of Strategy")]
pub trait ErasedStrategy: Send + Sync {
    /// Decodes the JSON form. The error text is upstream-like: `json: cannot unmarshal …`.
    fn decode(&self, value: Value) -> Result<Box<dyn Object>, Status>;
    /// As `decode`, in one pass, when the text is plain (see `coracle_meta::direct`); else `None`.
    fn decode_plain(&self, json: &[u8]) -> Option<Box<dyn Object>>;
    /// As `decode`, straight from JSON text that this process encoded itself.
    fn decode_slice(&self, json: &[u8]) -> Result<Box<dyn Object>, Status>;
    fn default(&self, obj: &mut dyn Object);
    fn prepare_create(&self, cx: Context<'_>, obj: &mut dyn Object);
    fn prepare_update(&self, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object);
    fn prepare_status_update(&self, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object);
    fn validate(&self, obj: &dyn Object, errs: &mut ErrorList);
    fn validate_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList);
    fn validate_status_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList);
    fn prepare_part_update(&self, part: Subresource, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object);
    fn validate_part_update(
        &self,
        part: Subresource,
        new: &dyn Object,
        old: &dyn Object,
        errs: &mut ErrorList,
    );
    fn completed(&self, obj: &dyn Object) -> Option<(&'static str, &'static str)>;
    fn drop_disabled(&self, obj: &mut dyn Object);
    fn settle(&self, obj: &mut dyn Object) -> bool;
    fn warnings(&self, new: &dyn Object, old: Option<&dyn Object>) -> Vec<String>;
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String>;
    fn row(&self, obj: &dyn Object, now: jiff::Timestamp) -> Vec<Value>;
    fn selectable(&self, obj: &dyn Object) -> Vec<(&'static str, String)>;
    fn graceful_deletion(&self, obj: &dyn Object, asked: Option<i64>) -> Option<i64>;
    /// The kind's JSON schema with its definitions, from the types crate.
    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema;
    /// How to show stored objects, when this is not the version that is stored.
    fn view(&self) -> Option<&dyn View> {
        None
    }
    /// The strategy as that of a custom resource, if it is one.
    fn custom(&self) -> Option<&CustomStrategy> {
        None
    }
}

/// Erases a [`Strategy`]: `&Typed::new(PodStrategy)` in a definition.
#[derive(Debug)]
pub struct Typed<K, S>(S, PhantomData<fn() -> K>);

impl<K, S> Typed<K, S> {
    /// Wraps a strategy.
    pub const fn new(strategy: S) -> Self {
        Self(strategy, PhantomData)
    }
}

fn cast<K: 'static>(obj: &dyn Object) -> Option<&K> {
    let any: &dyn Any = obj.as_any();
    any.downcast_ref()
}

/// See [`ErasedStrategy::decode`].
pub(crate) fn decode_kind<K: Kind>(mut value: Value) -> Result<K, Status> {
    let name = go::type_name(K::GROUP, K::VERSION, K::KIND);
    let refused = |why: String| {
        let (kind, version) = (K::KIND, K::VERSION);
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let empty = gaps::Empty::of(&value, K::KIND);
    if !go::canonicalize(&name, &mut value) {
        let mut text = Vec::new();
        go::write(&value, &mut text);
        if let Some(why) = go::type_error(&name, &text) {
            return Err(refused(why));
        }
    }
    gaps::mark(&mut value, K::KIND, empty);
    serde_json::from_value::<K>(value).map_err(|e| refused(e.to_string()))
}

impl<K: Kind + schemars::JsonSchema, S: Strategy<K>> ErasedStrategy for Typed<K, S> {
    fn decode(&self, value: Value) -> Result<Box<dyn Object>, Status> {
        Ok(Box::new(decode_kind::<K>(value)?))
    }
    fn decode_plain(&self, json: &[u8]) -> Option<Box<dyn Object>> {
        coracle_meta::direct::decode::<K>(json).map(|obj| Box::new(obj) as Box<dyn Object>)
    }
    fn decode_slice(&self, json: &[u8]) -> Result<Box<dyn Object>, Status> {
        let decoded = serde_json::from_slice::<K>(json).or_else(|e| {
            // Where upstream lets a time be absent, the types crate does not.
            let mut value = serde_json::from_slice(json)?;
            gaps::absent_times(&mut value, K::KIND);
            serde_json::from_value(value).map_err(|_| e)
        });
        match decoded {
            Ok(obj) => Ok(Box::new(obj)),
            Err(e) => Err(Status::internal(format!("stored {} cannot be decoded: {e}", K::KIND))),
        }
    }
    fn default(&self, obj: &mut dyn Object) {
        if let Some(obj) = obj.downcast_mut::<K>() {
            self.0.default(obj);
        }
    }
    fn prepare_create(&self, cx: Context<'_>, obj: &mut dyn Object) {
        if let Some(obj) = obj.downcast_mut::<K>() {
            self.0.prepare_create(cx, obj);
        }
    }
    fn prepare_update(&self, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        if let (Some(new), Some(old)) = (new.downcast_mut::<K>(), cast::<K>(old)) {
            self.0.prepare_update(cx, new, old);
        }
    }
    fn prepare_status_update(&self, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        if let (Some(new), Some(old)) = (new.downcast_mut::<K>(), cast::<K>(old)) {
            self.0.prepare_status_update(cx, new, old);
        }
    }
    fn validate(&self, obj: &dyn Object, errs: &mut ErrorList) {
        match cast::<K>(obj) {
            Some(obj) => self.0.validate(obj, errs),
            None => errs.internal("", "object of another kind"),
        }
    }
    fn validate_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        match (cast::<K>(new), cast::<K>(old)) {
            (Some(new), Some(old)) => self.0.validate_update(new, old, errs),
            _ => errs.internal("", "object of another kind"),
        }
    }
    fn validate_status_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        match (cast::<K>(new), cast::<K>(old)) {
            (Some(new), Some(old)) => self.0.validate_status_update(new, old, errs),
            _ => errs.internal("", "object of another kind"),
        }
    }
    fn prepare_part_update(
        &self,
        part: Subresource,
        cx: Context<'_>,
        new: &mut dyn Object,
        old: &dyn Object,
    ) {
        if let (Some(new), Some(old)) = (new.downcast_mut::<K>(), cast::<K>(old)) {
            self.0.prepare_part_update(part, cx, new, old);
        }
    }
    fn validate_part_update(
        &self,
        part: Subresource,
        new: &dyn Object,
        old: &dyn Object,
        errs: &mut ErrorList,
    ) {
        match (cast::<K>(new), cast::<K>(old)) {
            (Some(new), Some(old)) => self.0.validate_part_update(part, new, old, errs),
            _ => errs.internal("", "object of another kind"),
        }
    }
    fn drop_disabled(&self, obj: &mut dyn Object) {
        if let Some(obj) = obj.downcast_mut::<K>() {
            self.0.drop_disabled(obj);
        }
    }
    fn settle(&self, obj: &mut dyn Object) -> bool {
        obj.downcast_mut::<K>().is_some_and(|obj| self.0.settle(obj))
    }
    fn completed(&self, obj: &dyn Object) -> Option<(&'static str, &'static str)> {
        cast::<K>(obj).and_then(|obj| self.0.completed(obj))
    }
    fn warnings(&self, new: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        cast::<K>(new).map(|new| self.0.warnings(new, old.and_then(cast::<K>))).unwrap_or_default()
    }
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        self.0.validate_name(name, prefix)
    }
    fn row(&self, obj: &dyn Object, now: jiff::Timestamp) -> Vec<Value> {
        cast::<K>(obj).map(|obj| self.0.row(obj, now)).unwrap_or_default()
    }
    fn selectable(&self, obj: &dyn Object) -> Vec<(&'static str, String)> {
        cast::<K>(obj).map(|obj| self.0.selectable(obj)).unwrap_or_default()
    }
    fn graceful_deletion(&self, obj: &dyn Object, asked: Option<i64>) -> Option<i64> {
        cast::<K>(obj).and_then(|obj| self.0.graceful_deletion(obj, asked))
    }
    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<K>()
    }
}

/// The name column every table begins with.
pub const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    description: "Name must be unique within a namespace. Is required when creating resources, although some \
                  resources may allow a client to request the generation of an appropriate name \
                  automatically. Name is primarily intended for creation idempotence and configuration \
                  definition. Cannot be updated. More info: \
                  https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
};
/// The age column.
pub const AGE: Column = Column {
    name: "Age",
    kind: "string",
    format: "",
    priority: 0,
    description: "\
                  CreationTimestamp is a timestamp representing the server time when this object was \
                  created. It is not guaranteed to be set in happens-before order across separate \
                  operations. Clients may not set this value. It is represented in RFC3339 form and is in \
                  UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: \
              https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
};

/// A column shown always.
pub const fn col(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 0, description: name }
}
/// A column shown with `-o wide`.
pub const fn wide(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 1, description: name }
}

/// All that is known of a resource. Build with [`ResourceDef::new`] and override fields with struct update.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "fields are named as in discovery")]
pub struct ResourceDef {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    pub storage: Storage,
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    pub scale: Option<ScalePaths>,
    /// Whether a change of anything beside metadata and status raises `metadata.generation`.
    pub has_generation: bool,
    /// PUT to an absent name creates.
    pub create_on_update: bool,
    /// PUT without resourceVersion is accepted.
    pub unconditional_update: bool,
    /// How an update checks metadata beyond what is done for every kind.
    pub recheck: Recheck,
    /// The same of an update of its status (or approval).
    pub recheck_status: Recheck,
    /// DELETE answers with the object that is gone instead of a Status.
    pub returns_deleted: bool,
    /// Deletion orphans dependents unless asked otherwise (upstream's default policy is background).
    pub orphan_by_default: bool,
    /// Annotations that metadata-only encodings leave out, because upstream keeps what they say elsewhere.
    pub hidden_annotations: &'static [&'static str],
    pub strategy: &'static dyn ErasedStrategy,
}

impl std::fmt::Debug for ResourceDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.group, self.version, self.plural)
    }
}

impl ResourceDef {
    /// A namespaced, stored resource of kind `K` with name and age columns and no subresources. Group,
    /// version, kind and plural come from the type.
    pub const fn new<K: Kind>(singular: &'static str, strategy: &'static dyn ErasedStrategy) -> Self {
        Self {
            group: K::GROUP,
            version: K::VERSION,
            kind: K::KIND,
            plural: K::URL_PATH_SEGMENT,
            singular,
            short_names: &[],
            categories: &[],
            scope: Scope::Namespaced,
            storage: Storage::Stored,
            subresources: &[],
            columns: &[NAME, AGE],
            scale: None,
            has_generation: false,
            create_on_update: false,
            unconditional_update: true,
            recheck: Recheck::Both,
            recheck_status: Recheck::Change,
            returns_deleted: false,
            orphan_by_default: false,
            hidden_annotations: &[],
            strategy,
        }
    }

    /// The definition in which the objects are stored: this one, unless it is another version's view.
    pub fn stored(&'static self) -> &'static Self {
        self.strategy.view().map_or(self, View::stored)
    }

    /// Whether upstream's core validates its metadata, rather than the library that all servers share.
    pub fn of_core(&self) -> bool {
        const APART: &[&str] = &[
            "admissionregistration.k8s.io",
            "apiextensions.k8s.io",
            "apiregistration.k8s.io",
            "coordination.k8s.io",
            "node.k8s.io",
        ];
        !APART.contains(&self.group) && self.strategy.custom().is_none()
    }

    /// Whether the resource has the subresource.
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }
}
