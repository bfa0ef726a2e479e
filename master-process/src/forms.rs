//! How values are written in the state that is handed over in an upgrade: pids and paths, and what is left out.

/// Whether a value need not be written: whoever reads the state has it by default. Most fields of most workers are
/// such, and the time to write and read them is time in which no event is handled.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A pid as its number.
pub mod pid {
    use rustix::process::Pid;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(pid: &Pid, to: S) -> Result<S::Ok, S::Error> {
        pid.as_raw_pid().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Pid, D::Error> {
        let number = i32::deserialize(from)?;
        Pid::from_raw(number)
            .filter(|_| number > 0)
            .ok_or_else(|| serde::de::Error::custom(format_args!("{number} is no pid")))
    }
}

/// A path or a name as text, or as bytes if it is not UTF-8.
pub mod path {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(crate) fn serialize<S: Serializer>(path: &impl AsRef<OsStr>, to: S) -> Result<S::Ok, S::Error> {
        let path = path.as_ref();
        match path.to_str() {
            Some(text) => text.serialize(to),
            None => path.as_bytes().serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D, P>(from: D) -> Result<P, D::Error>
    where
        D: Deserializer<'de>,
        P: From<OsString>,
    {
        Ok(P::from(match Written::deserialize(from)? {
            Written::Text(text) => OsString::from(text),
            Written::Bytes(bytes) => OsString::from_vec(bytes),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use rustix::process::Pid;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Some {
        #[serde(with = "super::pid")]
        pid: Pid,
        #[serde(with = "super::path")]
        path: PathBuf,
        #[serde(with = "super::path")]
        name: OsString,
    }

    #[test]
    fn pids_and_names_of_any_bytes_survive() {
        let some = Some { pid: Pid::INIT, path: "/run/a".into(), name: OsString::from_vec(vec![b'a', 0xff]) };
        let written = serde_json::to_string(&some).expect("it can be written");
        assert_eq!(written, r#"{"pid":1,"path":"/run/a","name":[97,255]}"#);
        assert_eq!(serde_json::from_str::<Some>(&written).expect("it is readable"), some);
        assert!(serde_json::from_str::<Some>(&written.replace(":1,", ":0,")).is_err(), "no process has 0");
    }
}
