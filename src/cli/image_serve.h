/* vixen image serve. */
#ifndef VIXEN_CLI_IMAGE_SERVE_H
#define VIXEN_CLI_IMAGE_SERVE_H

int image_serve(int argc, char **argv);		/* argv[0]: "serve"; an exit code */

#endif
