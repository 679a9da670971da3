// What gRPC and protobuf have to say goes into our log, and no further.
#pragma once

namespace nibble {

// Call once, before either library is used. Does nothing to gRPC when $GRPC_VERBOSITY or
// $GRPC_TRACE asks for its own output.
void QuietLibraries();

}  // namespace nibble
