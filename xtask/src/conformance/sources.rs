//! The sources of other projects, from Debian or crates.io, as they were released.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run;

/// Where the sources are listed: of the release that this machine runs, for what must fit its programs, and of the next one.
const LIST: &str = "deb-src http://deb.debian.org/debian bookworm main
deb-src http://deb.debian.org/debian trixie main
";

/// A source package and where in it the suite lies.
pub(super) struct Source {
    /// Debian's name of it.
    pub(super) package: &'static str,
    /// The release of Debian that has the wanted version.
    pub(super) release: &'static str,
    /// What the name of its archive begins with.
    pub(super) archive: &'static str,
    /// What is unpacked, as patterns of tar; none: everything.
    pub(super) members: &'static [&'static str],
}

/// The folder of the unpacked source, fetched when it is not there yet.
pub(super) fn fetch(cache: &Path, source: &Source) -> Result<PathBuf> {
    let folder = cache.join(source.package);
    if folder.is_dir() {
        return Ok(folder);
    }
    let apt = Apt::new(&cache.join("apt"))?;
    println!("fetching the source of {}", source.package);
    run::run(apt.get().arg("update"))?;
    let wanted = format!("{}/{}", source.package, source.release);
    run::run(apt.get().args(["source", "--tar-only", "--download-only", &wanted]))?;
    let archive = apt.archive(source.archive)?;
    // Unpacked beside it and moved: what is there is complete.
    let fresh = cache.join(format!("{}.new", source.package));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).context("making the folder of a source")?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&fresh).args(["--strip-components=1", "--wildcards", "-xf"]).arg(archive);
    run::run(tar.args(source.members))?;
    fs::rename(&fresh, &folder).context("moving a source to its place")?;
    Ok(folder)
}

/// A published crate as it was released, with the lock file that it has, fetched by cargo when it is not there yet. Its
/// tests must be built with something that depends on it.
pub(super) fn vendor(cache: &Path, name: &str, version: &str) -> Result<PathBuf> {
    let folder = cache.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    println!("fetching {name} {version}");
    let fetched = cache.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&fetched);
    fs::create_dir_all(&fetched).context("making the folder of a source")?;
    let manifest = format!(
        "[package]\nname = \"fetched\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n\
         [workspace]\n\n[dependencies]\n{name} = \"={version}\"\n"
    );
    fs::write(fetched.join("Cargo.toml"), manifest).context("writing a manifest")?;
    fs::write(fetched.join("lib.rs"), "").context("writing an empty library")?;
    run::run(run::cargo(["vendor", "vendor"]).current_dir(&fetched).stdout(Stdio::null()))?;
    let source = fetched.join("vendor").join(name);
    // It lies below this project's folder, and does not belong to this project's workspace. What its tests are built
    // with may depend on it: on this very copy.
    let mut manifest = OpenOptions::new().append(true).open(source.join("Cargo.toml"))?;
    write!(manifest, "\n[workspace]\n\n[patch.crates-io]\n{name} = {{ path = \".\" }}\n")
        .context("completing a manifest")?;
    let released = format!("registry+https://github.com/rust-lang/crates.io-index#{name}");
    run::run(run::cargo(["update", &released]).current_dir(&source))?;
    fs::rename(&source, &folder).context("moving a source to its place")?;
    fs::remove_dir_all(&fetched).context("removing what was fetched along")?;
    Ok(folder)
}

/// apt with lists and downloads of its own: what the machine's administrator configured is left alone.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path) -> Result<Apt> {
        fs::create_dir_all(folder.join("lists/partial")).context("making apt's folders")?;
        fs::write(folder.join("sources.list"), LIST).context("writing apt's list of sources")?;
        Ok(Apt { folder: folder.to_owned() })
    }

    fn get(&self) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new("apt-get");
        command.current_dir(&self.folder);
        for option in [
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={folder}/lists"),
            // No index of packages kept outside.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The archive that was fetched. A package may have several; only one has this beginning and no component's name.
    fn archive(&self, beginning: &str) -> Result<PathBuf> {
        let files = fs::read_dir(&self.folder).context("reading apt's folder")?.flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        let found = names.into_iter().find(|name| {
            name.starts_with(beginning) && name.contains(".orig.tar.") && !name.ends_with(".asc")
        });
        Ok(self.folder.join(found.with_context(|| format!("apt-get fetched no {beginning}*"))?))
    }
}

/// Builds once: `build` is run in the source's folder unless `product` is there.
pub(super) fn build_once(product: &Path, build: impl FnOnce() -> Result<()>) -> Result<()> {
    if product.exists() {
        return Ok(());
    }
    println!("building {}", product.display());
    build()
}

/// Configures with cmake and builds one target in `folder/build`.
pub(super) fn cmake(folder: &Path, options: &[&str], target: &str) -> Result<()> {
    let build = folder.join("build");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(folder).arg("-B").arg(&build).args(options).stdout(Stdio::null());
    run::run(&mut configure)?;
    run::run(Command::new("cmake").arg("--build").arg(&build).args(["--target", target, "--parallel"]))
}
