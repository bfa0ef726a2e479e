//! The sources of other projects, from Debian, as they were released.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    configure.arg("-S").arg(folder).arg("-B").arg(&build).args(options).stdout(std::process::Stdio::null());
    run::run(&mut configure)?;
    run::run(Command::new("cmake").arg("--build").arg(&build).args(["--target", target, "--parallel"]))
}
