//! DefaultIngressClass: Ingresses that name no class get the default one, the newest if there are several.

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use super::default_storage_class::default_of;
use crate::{Environment, Operation, Plugin, Request};

const GROUP: &str = "networking.k8s.io";
/// Annotation that makes a class the default one.
const MARK: &str = "ingressclass.kubernetes.io/is-default-class";
/// Annotation by which old Ingresses name their class.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";

/// The plugin.
pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create && request.is(GROUP, "ingresses")
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(ingress) = request.object_mut::<Ingress>() else { return Ok(()) };
        let old = ingress.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(OLD_CLASS));
        let spec = ingress.spec.get_or_insert_default();
        if !old && spec.ingress_class_name.is_none() {
            let classes = env.reader.list(GROUP, "ingressclasses", "");
            let metas = classes.iter().filter_map(|obj| obj.downcast::<IngressClass>()).map(|c| &c.metadata);
            spec.ingress_class_name = default_of(metas, &[MARK]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_meta::Object;

    use super::*;
    use crate::plugins::testing::admit_in;

    #[track_caller]
    fn check(annotation: Option<&str>, expected: Option<&str>) {
        let mut class = IngressClass::default();
        class.metadata.name = Some("nginx".to_owned());
        class.metadata.annotations = Some([(MARK.to_owned(), "true".to_owned())].into());
        let classes: [Arc<dyn Object>; 1] = [Arc::new(class)];
        let mut ingress = Ingress::default();
        ingress.metadata.name = Some("a".to_owned());
        ingress.metadata.annotations = annotation.map(|a| [(a.to_owned(), String::new())].into());
        let mut object: Box<dyn Object> = Box::new(ingress);
        admit_in(&DefaultIngressClass, &classes, (GROUP, "ingresses"), &mut object).expect("admitted");
        let spec = object.downcast::<Ingress>().and_then(|i| i.spec.as_ref());
        assert_eq!(spec.and_then(|s| s.ingress_class_name.as_deref()), expected);
    }

    #[test]
    fn an_ingress_without_class_gets_the_default() {
        check(None, Some("nginx"));
        check(Some(OLD_CLASS), None);
    }
}
