//! Objects as a version other than the stored one shows them: the way out of `resources::version`.
//!
//! Everything inside the server has the stored version's type and bytes. Answers, watch frames, tables,
//! in-process readers, patches and field tracking pass through here; for the stored version it costs nothing.

use std::sync::Arc;

use coracle_meta::apply::{self, Versions};
use coracle_meta::{Object, Status};
use coracle_resources::custom::Conversion;
use coracle_resources::def::ResourceDef;
use serde_json::Value;

use crate::cache::CacheEntry;
use crate::codec;
use crate::fields::Fields;
use crate::registry::Resource;
use crate::verbs::list::Page;

impl Fields {
    /// The entry with the JSON that clients of this version get. Its decoded form stays the stored one, from
    /// which tables are made.
    ///
    /// # Errors
    /// 500 when the stored bytes do not decode.
    pub(crate) fn show(
        &self,
        resource: &Resource,
        entry: &Arc<CacheEntry>,
    ) -> Result<Arc<CacheEntry>, Status> {
        if resource.view().is_none() {
            return Ok(entry.clone());
        }
        let mut obj = entry.decode_full()?;
        obj.meta_mut().resource_version = None;
        let value = self.value_in(resource, &*obj)?;
        let encoded = codec::encode_value(resource.def, &value, entry.size())?;
        Ok(Arc::new(entry.shown(codec::splice(&encoded, entry.revision))))
    }

    /// All entries of a page as clients of this version get them.
    ///
    /// # Errors
    /// See [`Fields::show`].
    pub(crate) fn show_page(&self, resource: &Resource, page: Page) -> Result<Page, Status> {
        if resource.view().is_none() {
            return Ok(page);
        }
        let entries = page.entries.iter().map(|e| self.show(resource, e)).collect::<Result<_, _>>()?;
        Ok(Page { entries, ..page })
    }

    /// An object of the stored version as JSON of the resource's version, with what Go always writes.
    ///
    /// # Errors
    /// 500 for an object of another kind.
    pub(crate) fn value_in(&self, resource: &Resource, obj: &dyn Object) -> Result<Value, Status> {
        let mut value = bare(resource, obj)?;
        self.complete(resource.def, &mut value);
        Ok(value)
    }

    /// Stored JSON as JSON of the resource's version.
    ///
    /// # Errors
    /// 500 when it does not decode.
    pub(crate) fn text_in(&self, resource: &Resource, stored: &[u8]) -> Result<Value, Status> {
        if resource.view().is_none() {
            return serde_json::from_slice(stored).map_err(Status::internal);
        }
        self.value_in(resource, &*resource.def.strategy.decode_slice(stored)?)
    }
}

/// The typed object of the resource's version as JSON.
fn bare(resource: &Resource, obj: &dyn Object) -> Result<Value, Status> {
    Ok(match resource.view() {
        Some(view) => view.to_served(obj)?.to_value(),
        None => obj.to_value(),
    })
}

/// The decoded object in the resource's version, for readers in this process.
///
/// # Errors
/// 500 when the stored bytes do not decode.
pub(crate) fn object(resource: &Resource, entry: &CacheEntry) -> Result<Arc<dyn Object>, Status> {
    match resource.view() {
        Some(view) => Ok(Arc::from(view.to_served(&*entry.decoded()?)?)),
        None => entry.decoded(),
    }
}

/// The other versions of a resource, for managers that wrote through them.
pub(crate) struct OtherVersions<'a> {
    pub(crate) fields: &'a Fields,
    pub(crate) resource: &'a Resource,
}

impl OtherVersions<'_> {
    /// The definition that serves an `apiVersion` of the same objects.
    fn definition(&self, api_version: &str) -> Option<&'static ResourceDef> {
        if self.resource.custom().is_some() {
            return self.resource.version(api_version);
        }
        let stored = self.resource.def.stored();
        let same = |def: &&&'static ResourceDef| {
            std::ptr::eq(def.stored(), stored) && codec::api_version(def) == api_version
        };
        coracle_resources::all().iter().find(same).copied()
    }
}

impl Versions for OtherVersions<'_> {
    fn misfit(&self, object: &Value, api_version: &str) -> Option<String> {
        let custom = self.definition(api_version)?.strategy.custom()?.current();
        if custom.conversion != Conversion::None {
            return None;
        }
        apply::misfit(custom.fields(), custom.fields_name(), object)
    }

    fn type_name(&self, api_version: &str) -> Option<String> {
        let def = self.definition(api_version)?;
        Some(match def.strategy.custom() {
            Some(custom) => custom.current().fields_name().to_owned(),
            None => self.fields.name(def).to_owned(),
        })
    }

    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let from = self.definition(object.get("apiVersion")?.as_str()?)?;
        let to = self.definition(api_version)?;
        if let Some(custom) = to.strategy.custom() {
            // Whatever a webhook would make of it: ownership follows names of fields.
            let mut value = object.clone();
            value["apiVersion"] = api_version.into();
            custom.prune(&mut value, true).ok()?;
            return Some(value);
        }
        let stored = from.strategy.decode(object.clone()).ok()?;
        let mut value = match to.strategy.view() {
            Some(view) => view.to_served(&*stored).ok()?.to_value(),
            None => stored.to_value(),
        };
        self.fields.complete(to, &mut value);
        Some(value)
    }
}
