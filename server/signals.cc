#include "server/signals.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "runtime/base/log.h"

namespace nibble {
namespace {

constexpr int kEndSignal = SIGUSR1;  // ends the thread itself

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, kEndSignal);
  return set;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);  // a peer that is gone is an error of the write
}

SignalThread::SignalThread(std::function<void()> on_stop)
    : thread_([on_stop = std::move(on_stop)]() noexcept {
        const sigset_t set = StopSignals();
        bool stopping = false;
        for (int taken = 0;;) {
          if (sigwait(&set, &taken) != 0) continue;
          if (taken == kEndSignal) return;
          if (stopping) _exit(1);
          stopping = true;
          LogInfo("stopping", {{"signal", strsignal(taken)}});
          on_stop();
        }
      }) {}

SignalThread::~SignalThread() {
  pthread_kill(thread_.native_handle(), kEndSignal);
  thread_.join();
}

void NotifyServiceManager(const char* state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || path[0] == '\0' || std::strlen(path) >= sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path, path, std::strlen(path));
  const socklen_t size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path));
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // an abstract name
  const int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return;
  sendto(descriptor, state, std::strlen(state), MSG_NOSIGNAL,
         reinterpret_cast<const sockaddr*>(&address), size);
  close(descriptor);
}

}  // namespace nibble
