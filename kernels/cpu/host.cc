// What the container allows: CPU quota and memory limit, from cgroup v2 or v1.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>

#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

std::string ReadFirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The path of this process in the hierarchy of `controller` ("" for v2), e.g.
// "/system.slice/nibble.service".
std::string CgroupPath(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::istringstream names(line.substr(first + 1, second - first - 1));
    if (controller.empty() && second == first + 1) return line.substr(second + 1);
    for (std::string name; std::getline(names, name, ',');) {
      if (name == controller) return line.substr(second + 1);
    }
  }
  return "/";
}

// Calls visit(directory) from this process's cgroup up to the root: a limit of any ancestor binds.
template <typename Visit>
void ForEachAncestor(const std::string& mount, std::string path, Visit&& visit) {
  for (;;) {
    visit(mount + path);
    if (path.empty() || path == "/") return;
    path.resize(path.rfind('/'));
  }
}

double CpuQuota() {
  double quota = std::numeric_limits<double>::infinity();
  const auto take = [&](double run, double period) {
    if (run > 0 && period > 0) quota = std::min(quota, run / period);
  };
  ForEachAncestor("/sys/fs/cgroup", CgroupPath(""), [&](const std::string& directory) {
    std::istringstream line(
        ReadFirstLine(directory + "/cpu.max"));  // "max 100000" or "150000 100000"
    double run = 0, period = 0;
    if (line >> run >> period) take(run, period);
  });
  ForEachAncestor("/sys/fs/cgroup/cpu", CgroupPath("cpu"), [&](const std::string& directory) {
    take(std::atof(ReadFirstLine(directory + "/cpu.cfs_quota_us").c_str()),
         std::atof(ReadFirstLine(directory + "/cpu.cfs_period_us").c_str()));
  });
  return quota;
}

}  // namespace

int AvailableCpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cpus = CPU_COUNT(&mask);
  const double quota = std::ceil(CpuQuota());
  if (quota < cpus) cpus = static_cast<int>(quota);
  return std::max(cpus, 1);
}

std::int64_t MemoryLimit() {
  std::int64_t limit = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const auto take = [&](const std::string& text) {
    if (text.empty() || text == "max") return;
    const std::int64_t bytes = std::strtoll(text.c_str(), nullptr, 10);
    if (bytes > 0) limit = std::min(limit, bytes);
  };
  ForEachAncestor("/sys/fs/cgroup", CgroupPath(""), [&](const std::string& directory) {
    take(ReadFirstLine(directory + "/memory.max"));
  });
  ForEachAncestor("/sys/fs/cgroup/memory", CgroupPath("memory"), [&](const std::string& directory) {
    take(ReadFirstLine(directory + "/memory.limit_in_bytes"));
  });
  return limit;
}

}  // namespace nibble::cpu
