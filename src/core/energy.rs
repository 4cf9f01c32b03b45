//! Energy of the processors, as far as Linux tells it (RAPL): `intel-rapl:N/energy_uj` below
//! `/sys/class/powercap`, of AMD's processors as well. Reading it may need root.

use std::fs;
use std::path::{Path, PathBuf};

/// Directory of Linux's counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// Counts the energy of all processor packages from the time when it was opened.
#[derive(Debug)]
pub struct EnergyMeter {
    packages: Vec<Package>,
    microjoules: u64,
}

/// A counter that begins again at 0 after `most`.
#[derive(Debug)]
struct Package {
    counter: PathBuf,
    most: u64,
    last: u64,
}

impl EnergyMeter {
    /// Opens the counters below `root` ([`POWERCAP`]); `None` where no package tells its energy.
    pub fn open(root: &Path) -> Option<Self> {
        let entries = fs::read_dir(root).ok()?.flatten().map(|entry| entry.path());
        let packages: Vec<Package> = entries.filter_map(|zone| Package::open(&zone)).collect();
        (!packages.is_empty()).then_some(Self { packages, microjoules: 0 })
    }

    /// Returns the energy since the meter was opened, joules. A counter goes round in some minutes
    /// to hours, so this must be called more often.
    pub fn joules(&mut self) -> f64 {
        for package in &mut self.packages {
            let Some(now) = number(&package.counter) else { continue };
            self.microjoules += match now >= package.last {
                true => now - package.last,
                false => now + package.most.saturating_sub(package.last),
            };
            package.last = now;
        }
        self.microjoules as f64 / 1e6
    }
}

impl Package {
    /// Opens a zone that is a whole package: its parts, and the zone of the platform, count the
    /// same energy.
    fn open(zone: &Path) -> Option<Self> {
        let name = fs::read_to_string(zone.join("name")).ok()?;
        let counter = zone.join("energy_uj");
        let (last, most) = (number(&counter)?, number(&zone.join("max_energy_range_uj"))?);
        name.trim().starts_with("package").then_some(Self { counter, most, last })
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_summed_and_go_round() {
        let root = tempfile::tempdir().unwrap();
        let write = |zone: &str, file: &str, text: &str| {
            fs::create_dir_all(root.path().join(zone)).unwrap();
            fs::write(root.path().join(zone).join(file), text).unwrap();
        };
        assert!(EnergyMeter::open(root.path()).is_none());
        // A package, its cores, the platform, a second package, one that may not be read.
        for (zone, name) in [("0", "package-0"), ("0:0", "core"), ("1", "psys"), ("2", "package-1"), ("3", "package-2")]
        {
            write(&format!("intel-rapl:{zone}"), "name", &format!("{name}\n"));
            write(&format!("intel-rapl:{zone}"), "max_energy_range_uj", "10000000\n");
            if zone != "3" {
                write(&format!("intel-rapl:{zone}"), "energy_uj", "9000000\n");
            }
        }
        let mut meter = EnergyMeter::open(root.path()).unwrap();
        assert_eq!(meter.joules(), 0.0);
        write("intel-rapl:0", "energy_uj", "9500000\n");
        write("intel-rapl:0:0", "energy_uj", "9900000\n");
        write("intel-rapl:1", "energy_uj", "9900000\n");
        assert_eq!(meter.joules(), 0.5);
        // From 9 round to 2: 1 to the end, then 2.
        write("intel-rapl:2", "energy_uj", "2000000\n");
        assert_eq!(meter.joules(), 3.5);
        write("intel-rapl:0", "energy_uj", "nonsense");
        assert_eq!(meter.joules(), 3.5);
    }
}
