#include "server/model_service.h"

#include "nibble/v1/models.pb.h"
#include "runtime/base/status.h"
#include "server/unary.h"
#include "server/wire_response.h"

namespace nibble {

RpcService MakeModelService(const ServingState* state) {
  RpcService service{kModelService, {}};
  service.methods.push_back(Unary<v1::ListModelsRequest, v1::ListModelsResponse>(
      "ListModels",
      [state](const v1::ListModelsRequest&, v1::ListModelsResponse* response) -> absl::Status {
        for (const ModelStatus& status : state->List()) *response->add_models() = ToProto(status);
        return absl::OkStatus();
      }));
  service.methods.push_back(Unary<v1::GetModelRequest, v1::GetModelResponse>(
      "GetModel",
      [state](const v1::GetModelRequest& request, v1::GetModelResponse* response) -> absl::Status {
        const std::string name = state->Resolve(request.model());
        for (const ModelStatus& status : state->List()) {
          if (status.name != name && !name.empty()) continue;
          *response->mutable_model() = ToProto(status);
          return absl::OkStatus();
        }
        return state->Find(request.model()).status();  // says which models there are
      }));
  return service;
}

}  // namespace nibble
