//! Who may approve and sign certificate requests: the plugins CertificateApproval and CertificateSigning.
//!
//! They ask the authorizers, which admission plugins cannot, and so run here, behind mutating admission.

use coracle_auth::{Attributes, Decision};
use coracle_meta::{Object, Status};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;

use super::{Caller, Part};
use crate::registry::Resource;
use crate::server::Server;

const GROUP: &str = "certificates.k8s.io";

impl Server {
    /// Refuses an approval or a signature by someone who may not do that for the request's signer.
    ///
    /// # Errors
    /// 403 with upstream's text.
    pub(crate) fn forbid_signing(
        &self,
        caller: &Caller,
        resource: &Resource,
        part: Part,
        obj: &dyn Object,
        old: &dyn Object,
    ) -> Result<(), Status> {
        let (Some(new), Some(old)) = (obj.downcast::<Csr>(), old.downcast::<Csr>()) else { return Ok(()) };
        let verb = match part {
            Part::Approval => "approve",
            Part::Status if signs(new, old) => "sign",
            _ => return Ok(()),
        };
        let signer = &old.spec.signer_name;
        let domain = signer.split_once('/').map_or(signer.as_str(), |(domain, _)| domain);
        // Rights are given for one signer or for all signers of a domain.
        if self.may(caller, verb, signer) || self.may(caller, verb, &format!("{domain}/*")) {
            return Ok(());
        }
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Err(Status::forbidden(resource.def.group, resource.def.plural, obj.name(), &why))
    }

    fn may(&self, caller: &Caller, verb: &str, signer: &str) -> bool {
        let attributes = Attributes {
            user: (*caller.user).clone(),
            verb: verb.to_owned(),
            is_resource: true,
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name: signer.to_owned(),
            ..Attributes::default()
        };
        self.authorize(&attributes).0 == Decision::Allow
    }
}

/// Whether the change is one that signers make: of the certificate or of the conditions.
fn signs(new: &Csr, old: &Csr) -> bool {
    let parts = |csr: &Csr| {
        let status = csr.status.clone().unwrap_or_default();
        (status.certificate.unwrap_or_default().0, status.conditions.unwrap_or_default())
    };
    parts(new) != parts(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn csr(status: serde_json::Value) -> Csr {
        let spec = json!({ "request": "", "signerName": "example.com/s" });
        serde_json::from_value(json!({ "metadata": {}, "spec": spec, "status": status })).unwrap()
    }

    #[test]
    fn a_certificate_or_a_condition_is_a_signature_and_an_empty_status_is_none() {
        let none = csr(json!({}));
        assert!(!signs(&none, &csr(json!({ "conditions": [] }))));
        assert!(signs(&csr(json!({ "certificate": "QQ==" })), &none));
        assert!(signs(&csr(json!({ "conditions": [{ "type": "Failed", "status": "True" }] })), &none));
    }
}
