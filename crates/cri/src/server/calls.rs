//! The calls of [`CriServer`] that need more than a line.

use super::*;

impl CriServer {
    pub(super) async fn run_pod_sandbox(
        self: Arc<Self>,
        q: RunPodSandboxRequest,
    ) -> Outcome<RunPodSandboxResponse> {
        let config = q.config.ok_or_else(|| missing("config"))?;
        check_users(&config).map_err(CriError::InvalidArgument)?;
        let mut config = v1::PodSandboxConfig::from(config);
        if config.metadata.name.is_empty() {
            return Err(missing("metadata"));
        }
        config.runtime_handler = q.runtime_handler;
        Ok(RunPodSandboxResponse { pod_sandbox_id: self.runtime.run_pod_sandbox(config).await? })
    }

    pub(super) async fn pod_sandbox_status(
        self: Arc<Self>,
        q: PodSandboxStatusRequest,
    ) -> Outcome<PodSandboxStatusResponse> {
        let id = self.sandbox_id(q.pod_sandbox_id).await?;
        let status = self.runtime.pod_sandbox_status(&id).await?;
        let mut answer = PodSandboxStatusResponse { timestamp: self.now(), ..Default::default() };
        if q.verbose {
            answer.info.insert("info".into(), as_json(&status));
        }
        answer.containers_statuses = self.statuses(&id).await?;
        answer.status = Some(status.into());
        Ok(answer)
    }

    /// The statuses of a sandbox's containers.
    async fn statuses(&self, sandbox: &str) -> Outcome<Vec<wire::ContainerStatus>> {
        let filter = v1::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
        let mut all = Vec::new();
        for container in self.runtime.list_containers(filter).await? {
            // One that was removed meanwhile is not missed.
            if let Ok(status) = self.runtime.container_status(&container.id).await {
                all.push(status.into());
            }
        }
        Ok(all)
    }

    pub(super) async fn sandboxes(
        &self,
        filter: Option<wire::PodSandboxFilter>,
    ) -> Outcome<Vec<wire::PodSandbox>> {
        let mut filter = v1::PodSandboxFilter::from(filter.unwrap_or_default());
        filter.id = self.sandbox_id(filter.id).await?;
        let mut all = self.runtime.list_pod_sandbox(filter).await?;
        all.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        Ok(all.into_iter().map(Into::into).collect())
    }

    pub(super) async fn containers(
        &self,
        filter: Option<wire::ContainerFilter>,
    ) -> Outcome<Vec<wire::Container>> {
        let mut filter = v1::ContainerFilter::from(filter.unwrap_or_default());
        filter.id = self.container_id(filter.id).await?;
        filter.pod_sandbox_id = self.sandbox_id(filter.pod_sandbox_id).await?;
        let mut all = self.runtime.list_containers(filter).await?;
        all.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        Ok(all.into_iter().map(Into::into).collect())
    }

    pub(super) async fn create_container(
        self: Arc<Self>,
        q: CreateContainerRequest,
    ) -> Outcome<CreateContainerResponse> {
        let sandbox = self.sandbox_id(q.pod_sandbox_id).await?;
        let config = v1::ContainerConfig::from(q.config.ok_or_else(|| missing("config"))?);
        if config.metadata.name.is_empty() {
            return Err(missing("metadata"));
        }
        let of = q.sandbox_config.ok_or_else(|| missing("sandbox_config"))?.into();
        let container_id = self.runtime.create_container(&sandbox, config, of).await?;
        Ok(CreateContainerResponse { container_id })
    }

    pub(super) async fn container_status(
        self: Arc<Self>,
        q: ContainerStatusRequest,
    ) -> Outcome<ContainerStatusResponse> {
        let id = self.container_id(q.container_id).await?;
        let status = self.runtime.container_status(&id).await?;
        let mut info = coracle_grpc::Map::new();
        if q.verbose {
            let about = serde_json::json!({ "sandboxID": status.pod_sandbox_id, "pid": status.pid });
            info.insert("info".into(), about.to_string());
        }
        Ok(ContainerStatusResponse { status: Some(status.into()), info })
    }

    /// Refuses streams into a container that does not run, before a URL is given.
    async fn must_run(&self, id: &str) -> Outcome<()> {
        match self.runtime.container_status(id).await?.state {
            ContainerState::Running => Ok(()),
            state => Err(CriError::FailedPrecondition(format!(
                "container is in CONTAINER_{} state",
                format!("{state:?}").to_uppercase()
            ))),
        }
    }

    pub(super) async fn exec(self: Arc<Self>, q: wire::ExecRequest) -> Outcome<ExecResponse> {
        let container_id = self.container_id(q.container_id).await?;
        let wanted = Wanted { stdin: q.stdin, stdout: q.stdout, stderr: q.stderr, tty: q.tty };
        checked(wanted)?;
        self.must_run(&container_id).await?;
        let request = ExecRequest { container_id, command: q.cmd, tty: q.tty, stdin: q.stdin };
        let url = self.streams.command(Job::Exec(request), wanted).ok_or_else(too_many)?;
        Ok(ExecResponse { url })
    }

    pub(super) async fn attach(self: Arc<Self>, q: AttachRequest) -> Outcome<AttachResponse> {
        let id = self.container_id(q.container_id).await?;
        let wanted = Wanted { stdin: q.stdin, stdout: q.stdout, stderr: q.stderr, tty: q.tty };
        checked(wanted)?;
        self.must_run(&id).await?;
        let url = self.streams.command(Job::Attach(id), wanted).ok_or_else(too_many)?;
        Ok(AttachResponse { url })
    }

    pub(super) async fn port_forward(self: Arc<Self>, q: PortForwardRequest) -> Outcome<PortForwardResponse> {
        let id = self.sandbox_id(q.pod_sandbox_id).await?;
        if !self.runtime.pod_sandbox_status(&id).await?.ready {
            return Err(CriError::FailedPrecondition("sandbox container is not running".into()));
        }
        Ok(PortForwardResponse { url: self.streams.ports(&id).ok_or_else(too_many)? })
    }

    pub(super) async fn figures_of_container(&self, of: v1::Container) -> Outcome<wire::ContainerStats> {
        let stats = self.runtime.container_stats(&of.id).await?;
        let root = self.images.image_fs_info().await?.mountpoint;
        Ok(container_stats(&stats, of, &root, self.now()))
    }

    async fn figures_of_all(&self, filter: v1::ContainerFilter) -> Outcome<Vec<wire::ContainerStats>> {
        let mut all = Vec::new();
        for container in self.runtime.list_containers(filter).await? {
            // One that was removed meanwhile is not missed.
            if let Ok(stats) = self.figures_of_container(container).await {
                all.push(stats);
            }
        }
        Ok(all)
    }

    pub(super) async fn figures_of_containers(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Outcome<Vec<wire::ContainerStats>> {
        let filter = filter.unwrap_or_default();
        self.figures_of_all(v1::ContainerFilter {
            id: self.container_id(filter.id).await?,
            pod_sandbox_id: self.sandbox_id(filter.pod_sandbox_id).await?,
            // What has ended uses nothing.
            state: Some(ContainerState::Running),
            label_selector: filter.label_selector,
        })
        .await
    }

    pub(super) async fn figures_of_sandbox(&self, of: v1::PodSandbox) -> Outcome<wire::PodSandboxStats> {
        let stats = self.runtime.pod_sandbox_stats(&of.id).await?;
        let containers = v1::ContainerFilter {
            pod_sandbox_id: of.id.clone(),
            state: Some(ContainerState::Running),
            ..Default::default()
        };
        let containers = self.figures_of_all(containers).await?;
        Ok(sandbox_stats(&stats, of, containers, self.now()))
    }

    pub(super) async fn figures_of_sandboxes(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Outcome<Vec<wire::PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let filter = v1::PodSandboxFilter {
            id: self.sandbox_id(filter.id).await?,
            ready: Some(true),
            label_selector: filter.label_selector,
        };
        let mut all = Vec::new();
        for sandbox in self.runtime.list_pod_sandbox(filter).await? {
            if let Ok(stats) = self.figures_of_sandbox(sandbox).await {
                all.push(stats);
            }
        }
        Ok(all)
    }

    pub(super) async fn images(&self, filter: Option<ImageFilter>) -> Outcome<Vec<wire::Image>> {
        let wanted = filter.and_then(|f| f.image).filter(|i| !i.image.is_empty());
        let list = match wanted {
            Some(image) => self.images.image_status(&image.into()).await?.into_iter().collect(),
            None => self.images.list_images().await?,
        };
        Ok(list.into_iter().map(Into::into).collect())
    }

    pub(super) async fn events(self: Arc<Self>) -> Answer {
        let mut events = match self.runtime.container_events().await {
            Ok(events) => events,
            Err(e) => return Answer::Failed(e.into()),
        };
        let (sender, receiver) = mpsc::channel(WINDOW);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = sender.closed() => None,
                };
                let Some(event) = event else { return };
                if sender.send(Ok(self.told(event).await.encode())).await.is_err() {
                    return;
                }
            }
        });
        Answer::Stream(receiver)
    }

    /// An event with the state of the pod at the time when it is told.
    async fn told(&self, event: v1::ContainerEventResponse) -> wire::ContainerEventResponse {
        let id = &event.pod_sandbox_id;
        let status = self.runtime.pod_sandbox_status(id).await.map(wire::PodSandboxStatus::from);
        let kind = EVENTS.iter().position(|k| *k == event.kind).unwrap_or_default();
        // A sandbox that is gone is told by what the event knows of it.
        let sandbox = status.unwrap_or_else(|_| wire::PodSandboxStatus {
            id: id.clone(),
            metadata: Some(event.pod.clone().into()),
            state: 1,
            ..Default::default()
        });
        let of_sandbox = event.container_id.is_empty();
        wire::ContainerEventResponse {
            container_id: if of_sandbox { id.clone() } else { event.container_id.clone() },
            container_event_type: i32::try_from(kind).unwrap_or_default(),
            created_at: event.created_at,
            containers_statuses: self.statuses(id).await.unwrap_or_default(),
            pod_sandbox_status: Some(sandbox),
        }
    }
}

/// Streams of a command as clients may ask for them.
fn checked(wanted: Wanted) -> Outcome<()> {
    if wanted.tty && wanted.stderr {
        return Err(CriError::InvalidArgument("tty and stderr cannot both be true".into()));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(CriError::InvalidArgument("one of stdin, stdout, or stderr must be set".into()));
    }
    Ok(())
}

fn too_many() -> CriError {
    CriError::Unavailable("maximum number of in-flight requests exceeded".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_completed_where_only_one_begins_so() {
        let ids = ["abc1", "abc2", "b"];
        assert_eq!(complete("b", ids.into_iter()), "b");
        assert_eq!(complete("abc2", ids.into_iter()), "abc2");
        assert_eq!(complete("abc", ids.into_iter()), "abc");
        assert_eq!(complete("x", ids.into_iter()), "x");
    }

    #[test]
    fn a_terminal_has_no_stderr_and_some_stream_must_be_wanted() {
        let wanted = |stdout, stderr, tty| Wanted { stdin: false, stdout, stderr, tty };
        assert!(checked(wanted(true, false, true)).is_ok());
        assert!(checked(wanted(true, true, true)).is_err());
        assert!(checked(wanted(false, false, false)).is_err());
    }
}
