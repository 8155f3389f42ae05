//! Runs the plugins in order, pass by pass.

use coracle_meta::Status;
use jiff::Timestamp;

use crate::{Environment, Plugin, Request};

/// The plugins with what they look at.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    environment: Environment,
}

impl Chain {
    /// A chain that runs the plugins in the order given.
    pub fn new(plugins: Vec<Box<dyn Plugin>>, environment: Environment) -> Self {
        Self { plugins, environment }
    }

    /// The mutating pass; a second one follows when a webhook or policy changed the object and wants it.
    ///
    /// # Errors
    /// The first plugin's refusal.
    pub async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Status> {
        self.mutate_once(request).await?;
        if request.reinvocation.again {
            request.reinvocation.round = 1;
            self.mutate_once(request).await?;
        }
        Ok(())
    }

    async fn mutate_once(&self, request: &mut Request<'_>) -> Result<(), Status> {
        for plugin in &self.plugins {
            if plugin.handles(request) {
                let started = self.environment.clock.now();
                let verdict = plugin.mutate(&self.environment, request).await;
                self.observed(&**plugin, request, "admit", verdict.is_err(), started);
                verdict?;
            }
        }
        Ok(())
    }

    /// The validating pass.
    ///
    /// # Errors
    /// The first plugin's refusal.
    pub async fn validate(&self, request: &mut Request<'_>) -> Result<(), Status> {
        for plugin in &self.plugins {
            if plugin.handles(request) {
                let started = self.environment.clock.now();
                let verdict = plugin.validate(&self.environment, request).await;
                self.observed(&**plugin, request, "validate", verdict.is_err(), started);
                verdict?;
            }
        }
        Ok(())
    }

    fn observed(
        &self,
        plugin: &dyn Plugin,
        request: &Request<'_>,
        pass: &'static str,
        refused: bool,
        started: Timestamp,
    ) {
        if let Some(host) = self.environment.host() {
            let took = self.environment.clock.now().duration_since(started).unsigned_abs();
            host.observed(plugin.name(), request.operation, pass, refused, took);
        }
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.plugins.iter().map(|plugin| plugin.name())).finish()
    }
}
