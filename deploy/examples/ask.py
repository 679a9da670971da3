"""Asks a Nibble daemon one question and prints the answer as it comes.

    python ask.py 127.0.0.1:50051 "What is a nibble?"

Needs grpcio and grpcio-reflection only: the daemon describes its own API.
"""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

address, question = sys.argv[1], sys.argv[2]
channel = grpc.insecure_channel(address)
pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
service = pool.FindServiceByName("nibble.v1.GenerationService")
generate = service.FindMethodByName("Generate")
Request = message_factory.GetMessageClass(generate.input_type)
Response = message_factory.GetMessageClass(generate.output_type)
call = channel.unary_stream(
    "/nibble.v1.GenerationService/Generate",
    request_serializer=Request.SerializeToString,
    response_deserializer=Response.FromString,
)

request = Request(
    chat={"messages": [{"role": "user", "content": question}]},
    sampling={"temperature": 0.0},
    stopping={"max_tokens": 128},
)
try:
    for response in call(request):
        if response.WhichOneof("event") == "chunk":
            print(response.chunk.text, end="", flush=True)
    print()
except grpc.RpcError as error:
    sys.exit(f"\n{error.code().name}: {error.details()}")
