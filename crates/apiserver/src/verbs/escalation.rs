//! Nobody gives away more rights than they have: the check of every write of an RBAC object.
//!
//! Runs behind mutating admission and before validation, as upstream's policy-based storage does.

use coracle_auth::rbac::GROUP;
use coracle_auth::{Attributes, Decision};
use coracle_meta::{Object, Status};

use super::Caller;
use crate::registry::Resource;
use crate::server::Server;

impl Server {
    /// Refuses roles and bindings that grant what the caller does not hold; `old` is absent on create.
    ///
    /// # Errors
    /// 403 with upstream's text; 404 when a binding names an absent role.
    pub(crate) fn forbid_escalation(
        &self,
        caller: &Caller,
        resource: &Resource,
        obj: &dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), Status> {
        if resource.def.group != GROUP {
            return Ok(());
        }
        let allowed = |attributes: &Attributes| self.authorize(attributes).0 == Decision::Allow;
        self.rbac.may_write_role(&caller.user, obj, old, &allowed)?;
        self.rbac.may_bind(&caller.user, obj, old, &allowed)
    }
}
