//! logind on the system bus: locks that hold shutdowns up, and news of shutdowns.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use super::bus::{Arg, Bus, Method};

const NAME: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// Where upstream's kubelet asks for longer delays.
const OVERRIDE: &str = "/etc/systemd/logind.conf.d/99-kubelet.conf";
/// How often it is looked whether a longer delay is allowed, with twice the pause each time.
const LOOKS: u32 = 5;

/// A connection to logind.
pub(super) struct Logind(Bus);

/// A shutdown waits while one exists.
pub(super) struct Lock(#[expect(dead_code, reason = "held open")] OwnedFd);

impl Logind {
    /// Connects.
    ///
    /// # Errors
    /// There is no system bus.
    pub async fn connect(bus: &Path) -> io::Result<Self> {
        Ok(Self(Bus::connect(bus).await?))
    }

    /// How long a lock may hold a shutdown up.
    async fn delay(&mut self) -> io::Result<Duration> {
        let get = Method {
            destination: NAME,
            path: PATH,
            interface: "org.freedesktop.DBus.Properties",
            name: "Get",
        };
        let reply = self.0.call(get, &[Arg::Text(MANAGER), Arg::Text("InhibitDelayMaxUSec")]).await?;
        reply
            .long_variant()
            .map(Duration::from_micros)
            .ok_or_else(|| io::Error::other("InhibitDelayMaxUSec from logind is not a uint64 as expected"))
    }

    /// Has logind wait as long as `wanted`, by a file of its configuration if it must be.
    ///
    /// # Errors
    /// logind does not take it.
    pub async fn allow_delay(&mut self, wanted: Duration) -> io::Result<()> {
        if self.delay().await? >= wanted {
            return Ok(());
        }
        let path = Path::new(OVERRIDE);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let seconds = wanted.as_secs();
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds}\n");
        std::fs::write(path, text)?;
        let kill = Method {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            name: "KillUnit",
        };
        let hangup = [Arg::Text("systemd-logind.service"), Arg::Text("all"), Arg::Int(1)];
        self.0.call(kill, &hangup).await?;
        for look in 0..LOOKS {
            tokio::time::sleep(Duration::from_millis(100 << look)).await;
            if self.delay().await? >= wanted {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("logind does not let shutdowns wait {seconds} s")))
    }

    /// Takes a lock.
    pub async fn inhibit(&mut self) -> io::Result<Lock> {
        let why = ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"];
        let method = Method { destination: NAME, path: PATH, interface: MANAGER, name: "Inhibit" };
        self.0.call(method, &why.map(Arg::Text)).await?;
        self.0.descriptor().map(Lock).ok_or_else(|| io::Error::other("logind gave no lock"))
    }

    /// Asks for news.
    pub async fn watch(&mut self) -> io::Result<()> {
        let bus = "org.freedesktop.DBus";
        let method =
            Method { destination: bus, path: "/org/freedesktop/DBus", interface: bus, name: "AddMatch" };
        let rule = format!("type='signal',interface='{MANAGER}',member='PrepareForShutdown',path='{PATH}'");
        self.0.call(method, &[Arg::Text(&rule)]).await.map(drop)
    }

    /// Waits for news: whether the machine is going down, or is not any more.
    pub async fn next(&mut self) -> io::Result<bool> {
        loop {
            let signal = self.0.signal().await?;
            if signal.member() == "PrepareForShutdown"
                && let Some(going_down) = signal.truth()
            {
                return Ok(going_down);
            }
        }
    }
}
