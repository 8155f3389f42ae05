//! Versions of a resource beside the one it is stored in: [`ServedVersion`] makes a definition's strategy of a
//! [`Conversion`].
//!
//! Behind decoding every object has the stored version's type, so that a rule exists once. What leaves the
//! server (answers, watch events, managedFields) is converted back through the definition's [`View`].

use coracle_meta::field::ErrorList;
use coracle_meta::{Kind, Object, Status};
use serde_json::Value;

use crate::def::{Context, ErasedStrategy, ResourceDef, Subresource, decode_kind};

/// How the objects of a served version and of the stored version become each other.
///
/// Guarantees that implementations give: both directions keep metadata, and converting there and back keeps
/// everything the starting version can express.
pub trait Conversion: Send + Sync + 'static {
    /// The version that clients see.
    type Served: Kind + schemars::JsonSchema;
    /// The version in the store.
    type Stored: Kind;

    /// The definition in which the objects are stored.
    fn stored(&self) -> &'static ResourceDef;
    /// The served version's own defaults; those of the stored version follow after conversion.
    fn default(&self, _obj: &mut Self::Served) {}
    /// From the served version to the stored one.
    fn to_stored(&self, obj: Self::Served) -> Self::Stored;
    /// From the stored version to the served one.
    fn to_served(&self, obj: &Self::Stored) -> Self::Served;
    /// Checks a new object; by default as the stored version does.
    fn validate(&self, obj: &Self::Stored, errs: &mut ErrorList) {
        self.stored().strategy.validate(obj, errs);
    }
    /// Checks a name or the beginning of one, where this version does it in its own way.
    fn validate_name(&self, _name: &str, _prefix: bool) -> Option<Vec<String>> {
        None
    }
    /// Checks a change; by default as the stored version does.
    fn validate_update(&self, new: &Self::Stored, old: &Self::Stored, errs: &mut ErrorList) {
        self.stored().strategy.validate_update(new, old, errs);
    }
    /// The selectable fields beside name and namespace: the served name and the stored one.
    fn field_labels(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

/// A [`Conversion`] without its type parameters: what the generic verbs ask of a version that is not the stored
/// one.
pub trait View: Send + Sync {
    /// The definition in which the objects are stored.
    fn stored(&self) -> &'static ResourceDef;
    /// A stored object in this version.
    ///
    /// # Errors
    /// 500 for an object of another kind.
    fn to_served(&self, obj: &dyn Object) -> Result<Box<dyn Object>, Status>;
    /// The stored name of a selectable field; `None` when this version has no such field.
    fn field_label(&self, label: &str) -> Option<&'static str>;
}

/// The strategy of a version that is not the stored one: decodes and converts, then does as the stored version.
#[derive(Debug)]
pub struct ServedVersion<C>(C);

impl<C> ServedVersion<C> {
    /// Wraps a conversion.
    pub const fn new(conversion: C) -> Self {
        Self(conversion)
    }
}

impl<C: Conversion> ServedVersion<C> {
    fn hub(&self) -> &'static dyn ErasedStrategy {
        self.0.stored().strategy
    }
}

fn other_kind() -> Status {
    Status::internal("object of another kind")
}

impl<C: Conversion> View for ServedVersion<C> {
    fn stored(&self) -> &'static ResourceDef {
        self.0.stored()
    }
    fn to_served(&self, obj: &dyn Object) -> Result<Box<dyn Object>, Status> {
        let stored = obj.downcast::<C::Stored>().ok_or_else(other_kind)?;
        Ok(Box::new(self.0.to_served(stored)))
    }
    fn field_label(&self, label: &str) -> Option<&'static str> {
        self.0.field_labels().iter().find(|(served, _)| *served == label).map(|(_, stored)| *stored)
    }
}

impl<C: Conversion> ErasedStrategy for ServedVersion<C> {
    fn view(&self) -> Option<&dyn View> {
        Some(self)
    }
    fn decode(&self, value: Value) -> Result<Box<dyn Object>, Status> {
        let mut served = decode_kind::<C::Served>(value)?;
        self.0.default(&mut served);
        Ok(Box::new(self.0.to_stored(served)))
    }
    fn decode_plain(&self, _: &[u8]) -> Option<Box<dyn Object>> {
        None
    }
    fn decode_slice(&self, json: &[u8]) -> Result<Box<dyn Object>, Status> {
        self.hub().decode_slice(json)
    }
    fn default(&self, obj: &mut dyn Object) {
        self.hub().default(obj);
    }
    fn prepare_create(&self, cx: Context<'_>, obj: &mut dyn Object) {
        self.hub().prepare_create(cx, obj);
    }
    fn prepare_update(&self, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        self.hub().prepare_update(cx, new, old);
    }
    fn prepare_status_update(&self, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        self.hub().prepare_status_update(cx, new, old);
    }
    fn validate(&self, obj: &dyn Object, errs: &mut ErrorList) {
        match obj.downcast::<C::Stored>() {
            Some(obj) => self.0.validate(obj, errs),
            None => errs.internal("", "object of another kind"),
        }
    }
    fn validate_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        match (new.downcast::<C::Stored>(), old.downcast::<C::Stored>()) {
            (Some(new), Some(old)) => self.0.validate_update(new, old, errs),
            _ => errs.internal("", "object of another kind"),
        }
    }
    fn validate_status_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        self.hub().validate_status_update(new, old, errs);
    }
    fn prepare_part_update(
        &self,
        part: Subresource,
        cx: Context<'_>,
        new: &mut dyn Object,
        old: &dyn Object,
    ) {
        self.hub().prepare_part_update(part, cx, new, old);
    }
    fn validate_part_update(
        &self,
        part: Subresource,
        new: &dyn Object,
        old: &dyn Object,
        errs: &mut ErrorList,
    ) {
        self.hub().validate_part_update(part, new, old, errs);
    }
    fn drop_disabled(&self, obj: &mut dyn Object) {
        self.hub().drop_disabled(obj);
    }
    fn settle(&self, obj: &mut dyn Object) -> bool {
        self.hub().settle(obj)
    }
    fn completed(&self, obj: &dyn Object) -> Option<(&'static str, &'static str)> {
        self.hub().completed(obj)
    }
    fn warnings(&self, new: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        self.hub().warnings(new, old)
    }
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        self.0.validate_name(name, prefix).unwrap_or_else(|| self.hub().validate_name(name, prefix))
    }
    fn row(&self, obj: &dyn Object, now: jiff::Timestamp) -> Vec<Value> {
        self.hub().row(obj, now)
    }
    fn selectable(&self, obj: &dyn Object) -> Vec<(&'static str, String)> {
        self.hub().selectable(obj)
    }
    fn graceful_deletion(&self, obj: &dyn Object, asked: Option<i64>) -> Option<i64> {
        self.hub().graceful_deletion(obj, asked)
    }
    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<C::Served>()
    }
}
