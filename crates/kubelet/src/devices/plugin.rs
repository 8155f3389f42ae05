//! A plug-in as the kubelet talks to it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use coracle_grpc::{Channel, Message, MessageStream, Status};
use tokio_util::sync::CancellationToken;

use super::book::Candidates;
use super::wire::*;

/// How long PreStartContainer may take, as upstream; the other calls are given the same.
const LIMIT: Duration = Duration::from_secs(30);

/// A registered plug-in.
#[derive(Debug)]
pub struct Plugin {
    channel: Channel,
    options: DevicePluginOptions,
    left: CancellationToken,
}

impl Plugin {
    /// The plug-in that listens at `socket`.
    pub fn new(socket: &Path, options: DevicePluginOptions) -> Self {
        Self { channel: Channel::unix(socket), options, left: CancellationToken::new() }
    }

    /// The plug-in that listens at `socket`, who is asked how he wants to be treated.
    ///
    /// # Errors
    /// He does not say it.
    pub async fn connect(socket: &Path) -> Result<Self, String> {
        let mut plugin = Self::new(socket, DevicePluginOptions::default());
        let options = plugin.ask("GetDevicePluginOptions", &Empty {}).await;
        plugin.options = options.map_err(|e| format!("failed to get device plugin options: {e}"))?;
        Ok(plugin)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        self.channel.path()
    }

    /// It is gone, whatever its connection says.
    pub fn leave(&self) {
        self.left.cancel();
    }

    /// Completes once it is gone.
    pub async fn left(&self) {
        self.left.cancelled().await;
    }

    async fn ask<Q: Message, A: Message>(&self, name: &str, request: &Q) -> Result<A, String> {
        let answer = self.channel.call(&format!("v1beta1.DevicePlugin/{name}"), request, Some(LIMIT)).await;
        answer.map_err(|e| format!("rpc error: code = {:?} desc = {}", e.code, e.message))
    }

    /// Its devices, now and whenever they change.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn watch(&self) -> Result<MessageStream<ListAndWatchResponse>, Status> {
        self.channel.stream("v1beta1.DevicePlugin/ListAndWatch", &Empty {}).await
    }

    /// Which of the candidates it would rather give; none where it does not care or there is no choice.
    ///
    /// # Errors
    /// Its refusal.
    pub async fn prefers(&self, candidates: &Candidates, count: usize) -> Result<Vec<String>, String> {
        if !self.options.get_preferred_allocation_available || candidates.available.len() <= count {
            return Ok(Vec::new());
        }
        let one = ContainerPreferredAllocationRequest {
            available: candidates.available.clone(),
            must_include: candidates.must.clone(),
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![one] };
        let answer: PreferredAllocationResponse = self.ask("GetPreferredAllocation", &request).await?;
        Ok(answer.container_responses.into_iter().next().map(|r| r.device_ids).unwrap_or_default())
    }

    /// What a container needs that gets these devices.
    ///
    /// # Errors
    /// Its refusal.
    pub async fn allocate(&self, ids: &BTreeSet<String>) -> Result<ContainerAllocateResponse, String> {
        let one = ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() };
        let request = AllocateRequest { container_requests: vec![one] };
        let answer: AllocateResponse = self.ask("Allocate", &request).await?;
        let needs = answer.container_responses.into_iter().next();
        needs.ok_or_else(|| "the device plugin's answer is for no container".to_owned())
    }

    /// A container with these devices is about to start.
    ///
    /// # Errors
    /// Its refusal.
    pub async fn before_start(&self, ids: &BTreeSet<String>) -> Result<(), String> {
        if !self.options.pre_start_required {
            return Ok(());
        }
        let request = PreStartContainerRequest { devices_ids: ids.iter().cloned().collect() };
        let _: Empty = self.ask("PreStartContainer", &request).await?;
        Ok(())
    }
}
