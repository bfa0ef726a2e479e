//! Sizes in a form that is short to read.

use std::fmt;

/// `512 B`, `4.0 KiB`, `1.2 GiB`. Without floating-point functions: the library that has them, which nothing else needs, costs
/// each supervisor 8 KiB.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let Size(bytes) = *self;
        // The tenths of the largest unit that is not above it, rounded.
        let (mut tenths, mut name) = (None, "B");
        for (power, unit) in (1u32..).zip(UNITS) {
            let size = 1u128 << (10 * power);
            let rounded = (u128::from(bytes) * 10 + size / 2) / size;
            if rounded < 10 {
                break;
            }
            (tenths, name) = (Some(rounded), unit);
        }
        match tenths {
            None => write!(f, "{bytes} {name}"),
            Some(tenths) => write!(f, "{}.{} {name}", tenths / 10, tenths % 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_the_largest_unit_that_fits() {
        let texts = [
            (0, "0 B"),
            (512, "512 B"),
            (972, "972 B"),
            (1024, "1.0 KiB"),
            (1023 * 1024 + 1000, "1.0 MiB"),
            (1_258_291_200, "1.2 GiB"),
            (12_648_448, "12.1 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in texts {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
