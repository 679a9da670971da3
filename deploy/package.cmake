# What `cmake --install` puts on a machine, and the Debian package (`cpack` in the build folder).
include(GNUInstallDirs)
# Packaging needs the program, not the tests.
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)

set(service_directory lib/systemd/system)
install(FILES deploy/systemd/nibble.service DESTINATION ${service_directory})
install(FILES deploy/systemd/nibble.yaml DESTINATION /etc/nibble)
install(FILES deploy/debian/copyright DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY proto/nibble DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble/proto FILES_MATCHING PATTERN "*.proto")

# Compressed as Debian wants them; the bill of materials reads the program as installed.
foreach(entry "man/nibble.1:${CMAKE_INSTALL_MANDIR}/man1/nibble.1" "debian/changelog:${CMAKE_INSTALL_DOCDIR}/changelog")
  string(REPLACE ":" ";" entry ${entry})
  list(GET entry 0 source)
  list(GET entry 1 target)
  get_filename_component(name ${target} NAME)
  get_filename_component(directory ${target} DIRECTORY)
  install(CODE "execute_process(COMMAND gzip -9nc \"${PROJECT_SOURCE_DIR}/deploy/${source}\"
    OUTPUT_FILE \"${PROJECT_BINARY_DIR}/${name}.gz\" COMMAND_ERROR_IS_FATAL ANY)")
  install(FILES ${PROJECT_BINARY_DIR}/${name}.gz DESTINATION ${directory})
endforeach()
install(CODE "execute_process(COMMAND \"${PROJECT_SOURCE_DIR}/deploy/sbom\"
  \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/bin/nibble\" ${PROJECT_VERSION}
  OUTPUT_FILE \"${PROJECT_BINARY_DIR}/nibble.spdx.json\" COMMAND_ERROR_IS_FATAL ANY)")
install(FILES ${PROJECT_BINARY_DIR}/nibble.spdx.json DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME nibble)
set(CPACK_PACKAGE_VENDOR "The Nibble developers")
set(CPACK_PACKAGE_CONTACT "The Nibble developers <nibble-developers@lists.nibble.dev>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "gRPC daemon serving quantized language models")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
"Nibble loads GPTQ, AWQ, bitsandbytes, compressed-tensors and GGUF models,
batches requests continuously within a memory budget planned beforehand, and
streams answers over gRPC. It reports health, drains on SIGTERM and exports
its throughput, latency and memory to Prometheus.
.
The package brings the daemon, the commands used around it (plan, inspect,
generate, bench, health), a hardened systemd service that is not started by
itself, and the protocol files that clients are generated from.")
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS systemd)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
# A file below /etc that the administrator changes stays changed.
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/conffiles CONTENT "/etc/nibble/nibble.yaml\n")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
  ${PROJECT_SOURCE_DIR}/deploy/debian/postinst ${PROJECT_SOURCE_DIR}/deploy/debian/prerm
  ${PROJECT_SOURCE_DIR}/deploy/debian/postrm ${PROJECT_BINARY_DIR}/conffiles)
set(CPACK_STRIP_FILES ON)
# /etc is outside the prefix.
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
include(CPack)
