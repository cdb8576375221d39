//! Which format an image has, and whether it is whole by itself. The content is not believed: it may be a guest's raw disk, into
//! which the guest has written the beginning of something else.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::error::ImageError;

/// How much of an image is looked at.
pub(super) const BEGINNING_BYTES: usize = 512;

/// A format of disk images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageFormat {
    /// The disk's bytes and nothing else.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, sparse and in one file.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's and Azure's.
    Vpc,
}

impl ImageFormat {
    const ALL: [Self; 6] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vdi, Self::Vhdx, Self::Vpc];

    /// As QEMU calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
        }
    }

    /// The format that a file's name speaks of.
    fn of_name(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "qcow2" | "qcow" => Self::Qcow2,
            "vmdk" => Self::Vmdk,
            "vdi" => Self::Vdi,
            "vhdx" => Self::Vhdx,
            "vhd" | "vpc" => Self::Vpc,
            _ => Self::Raw,
        }
    }

    /// The format that a beginning speaks of.
    fn of_beginning(beginning: &[u8]) -> Self {
        if beginning.starts_with(b"QFI\xfb") {
            Self::Qcow2
        } else if beginning.starts_with(b"KDMV") {
            Self::Vmdk
        } else if beginning.starts_with(b"vhdxfile") {
            Self::Vhdx
        } else if beginning.starts_with(b"conectix") {
            Self::Vpc
        } else if beginning.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
            Self::Vdi
        } else {
            Self::Raw
        }
    }

    /// The format to read an image in. What is asked for counts, if the beginning is that of such an image; else name
    /// and beginning must agree.
    pub(super) fn decide(asked: Option<Self>, path: &Path, beginning: &[u8]) -> Result<Self, ImageError> {
        let found = Self::of_beginning(beginning);
        let path = path.to_owned();
        match asked {
            Some(Self::Raw) => Ok(Self::Raw),
            // A fixed-size VHD ends with its header.
            Some(Self::Vpc) if found == Self::Raw => Ok(Self::Vpc),
            Some(format) if format == found => Ok(format),
            Some(format) => Err(ImageError::OtherFormat { path, format }),
            None => match Self::of_name(&path) {
                named if named == found => Ok(found),
                named => Err(ImageError::Ambiguous { path, named, found }),
            },
        }
    }

    /// Refuses an image whose reading would read other files. What QEMU is told says so again.
    pub(super) fn check_whole(self, path: &Path, beginning: &[u8]) -> Result<(), ImageError> {
        let refers = |what| Err(ImageError::RefersElsewhere { path: path.to_owned(), what });
        let number = |from: usize| {
            beginning
                .get(from..)
                .and_then(<[u8]>::first_chunk::<8>)
                .map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes))
        };
        match self {
            // docs/interop/qcow2.txt of QEMU: bytes 8 to 15 are where the backing file's name is; of the
            // incompatible features (version 3, bytes 72 to 79) bit 2 is an external data file.
            Self::Qcow2 if number(8) != 0 => refers("a backing file"),
            Self::Qcow2 if beginning.get(4..8) != Some(&[0, 0, 0, 2]) && number(72) & 4 != 0 => {
                refers("an external data file")
            }
            // Without a capacity the extents are those of a text inside, which names files.
            Self::Vmdk if number(12) == 0 => refers("extents in other files"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ImageFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("formats are {names}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(version: u8, backing: u8, features: u8) -> Vec<u8> {
        let mut beginning = vec![0; BEGINNING_BYTES];
        beginning[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        (beginning[15], beginning[79]) = (backing, features);
        beginning
    }

    #[test]
    fn name_and_beginning_must_agree_unless_the_format_is_said() {
        let (raw, disk) = (vec![0; BEGINNING_BYTES], qcow2(3, 0, 0));
        let decide =
            |asked, name: &str, beginning: &[u8]| ImageFormat::decide(asked, Path::new(name), beginning);
        assert_eq!(decide(None, "a.img", &raw).expect("raw"), ImageFormat::Raw);
        assert_eq!(decide(None, "a.qcow2", &disk).expect("qcow2"), ImageFormat::Qcow2);
        for (name, beginning) in [("a.img", &disk), ("a.qcow2", &raw), ("a.vmdk", &disk)] {
            assert!(matches!(decide(None, name, beginning), Err(ImageError::Ambiguous { .. })), "{name}");
        }
        assert_eq!(decide(Some(ImageFormat::Raw), "a.img", &disk).expect("raw"), ImageFormat::Raw);
        assert_eq!(decide(Some(ImageFormat::Qcow2), "a.img", &disk).expect("qcow2"), ImageFormat::Qcow2);
        let other = decide(Some(ImageFormat::Qcow2), "a.qcow2", &raw);
        assert!(matches!(other, Err(ImageError::OtherFormat { .. })));
    }

    #[test]
    fn images_that_refer_to_other_files_are_refused() {
        let path = Path::new("a");
        let check = |beginning: &[u8]| ImageFormat::Qcow2.check_whole(path, beginning);
        check(&qcow2(3, 0, 0)).expect("whole");
        check(&qcow2(2, 0, 4)).expect("version 2 has no features");
        for beginning in [qcow2(3, 1, 0), qcow2(2, 1, 0), qcow2(3, 0, 4), b"QFI\xfb".to_vec()] {
            assert!(matches!(check(&beginning), Err(ImageError::RefersElsewhere { .. })));
        }
        let mut vmdk = vec![0; BEGINNING_BYTES];
        vmdk[..4].copy_from_slice(b"KDMV");
        assert!(matches!(
            ImageFormat::Vmdk.check_whole(path, &vmdk),
            Err(ImageError::RefersElsewhere { .. })
        ));
        vmdk[12] = 8;
        ImageFormat::Vmdk.check_whole(path, &vmdk).expect("whole");
    }

    #[test]
    fn a_format_has_one_name() {
        for format in ImageFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        "qcow".parse::<ImageFormat>().expect_err("there is no such format");
    }
}
