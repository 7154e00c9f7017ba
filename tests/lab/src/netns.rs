//! Network namespaces: hosts of their own on one machine, joined by veth pairs. Needs root.
//!
//! Names carry the process id, so that test runs never meet; a namespace goes away with its value.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One host.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// A way into a namespace for one thread.
#[derive(Debug)]
pub struct Entrance {
    file: File,
}

impl Namespace {
    /// Makes one, with its loopback up.
    ///
    /// # Errors
    /// Not root, or no `ip`.
    pub fn new(role: &str) -> Result<Self> {
        let name = format!("cv{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        // Duplicate address detection would make every IPv6 test wait a second.
        namespace.sysctl("net.ipv6.conf.default.accept_dad=0")?;
        namespace.sysctl("net.ipv6.conf.all.accept_dad=0")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands before a program that is to run inside.
    pub fn prefix(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.path().display()), "--".to_owned()]
    }

    /// `ip` inside.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        ip(&[&["-n", self.name.as_str()], args].concat())
    }

    /// Sets a kernel parameter inside.
    ///
    /// # Errors
    /// What `sysctl` said.
    pub fn sysctl(&self, setting: &str) -> Result<String> {
        self.run("sysctl", &["-q", "-w", setting])
    }

    /// Loads nftables rules inside.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn nft(&self, rules: &str) -> Result<String> {
        self.run("nft", &[rules])
    }

    /// Runs a program inside to its end and gives its output.
    ///
    /// # Errors
    /// It failed: what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program).args(args);
        output(command)
    }

    /// A way in for a thread.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn entrance(&self) -> Result<Entrance> {
        let path = self.path();
        Ok(Entrance { file: File::open(&path).with_context(|| path.display().to_string())? })
    }

    /// Runs a future on a thread inside, with a runtime of its own, and gives its result.
    ///
    /// # Errors
    /// The thread could not enter, or the future failed.
    pub async fn within<T, F, Fut>(&self, make: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>>,
    {
        self.begin(make)?.await.context("the thread inside the namespace panicked")?
    }

    /// As [`Namespace::within`], but goes on beside the caller.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn begin<T, F, Fut>(&self, make: F) -> Result<tokio::sync::oneshot::Receiver<Result<T>>>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>>,
    {
        let entrance = self.entrance()?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let result = entrance.enter().and_then(|()| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(make())
            });
            let _ = sender.send(result);
        });
        Ok(receiver)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

impl Entrance {
    /// Moves the calling thread inside, for good.
    ///
    /// # Errors
    /// Not root.
    pub fn enter(&self) -> Result<()> {
        nix::sched::setns(&self.file, nix::sched::CloneFlags::CLONE_NEWNET).context("enter the namespace")
    }
}

/// Joins two namespaces: interface `left_name` in `left`, `right_name` in `right`, each with its addresses, up.
///
/// # Errors
/// What `ip` said.
pub fn join(
    (left, left_name, left_addresses): (&Namespace, &str, &[&str]),
    (right, right_name, right_addresses): (&Namespace, &str, &[&str]),
) -> Result<()> {
    ip(&[
        "link",
        "add",
        left_name,
        "netns",
        &left.name,
        "type",
        "veth",
        "peer",
        "name",
        right_name,
        "netns",
        &right.name,
    ])?;
    for (namespace, name, addresses) in [(left, left_name, left_addresses), (right, right_name, right_addresses)] {
        for address in addresses {
            namespace.ip(&["addr", "add", address, "dev", name])?;
        }
        namespace.ip(&["link", "set", name, "up"])?;
    }
    Ok(())
}

fn ip(args: &[&str]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(args);
    output(command)
}

fn output(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| shown.clone())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{shown}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}
